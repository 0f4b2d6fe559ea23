"""Every remedy with the settings that a set-up and its history speak for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gradwatch.records import Snapshot
from gradwatch.remedies.activation import RELUS, ReplaceActivations
from gradwatch.remedies.clipping import Clip, RemoveClip
from gradwatch.remedies.detached import TrainAll, UnfreezeAll
from gradwatch.remedies.gradients import ClipOutliers, NormalizeGradients, SkipBadSteps
from gradwatch.remedies.guard import GuardOperations
from gradwatch.remedies.head import FixHead
from gradwatch.remedies.hints import usual_norm
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.inputs import RescaleInputs
from gradwatch.remedies.keep_graph import KeepGraph
from gradwatch.remedies.learning_rate import LowerLearningRate, RaiseLearningRate
from gradwatch.remedies.loss_scale import ScaleLoss
from gradwatch.remedies.normalization import InsertNormalization, has_normalization
from gradwatch.remedies.normalize_first import NormalizeFirst
from gradwatch.remedies.optimizer import ChangeOptimizer
from gradwatch.remedies.precision import UseBfloat16
from gradwatch.remedies.rates import raising_factor, rate_factor
from gradwatch.remedies.recurrent import OrthogonalRecurrence, ReplaceRecurrence
from gradwatch.remedies.remedy import Remedy
from gradwatch.remedies.residual import AddSkips
from gradwatch.remedies.schedule import WarmUp
from gradwatch.remedies.setup import Setup
from gradwatch.remedies.targets import RescaleTargets


def candidates(setup: Setup, history: Sequence[Snapshot] = ()) -> Iterator[Remedy]:
    """Every remedy with the settings that the history speaks for, the simpler of two alike first."""
    yield from (ReplaceActivations(), ReplaceActivations("SELU"), ReplaceActivations("LeakyReLU", RELUS))
    if not has_normalization(setup.module):
        yield from (InsertNormalization("batch"), InsertNormalization())
    yield from (NormalizeFirst(), InitializeAgain(), InitializeAgain("orthogonal"), AddSkips())
    yield from (FixHead(), UnfreezeAll(), TrainAll(), KeepGraph(), GuardOperations(), UseBfloat16(), ScaleLoss())
    yield from (ReplaceRecurrence(), ReplaceRecurrence("LSTM"), OrthogonalRecurrence(), RemoveClip())
    factor = rate_factor(setup.module, history)
    yield from (LowerLearningRate(factor), LowerLearningRate(float(f"{factor / 10:.0e}")), WarmUp(), ChangeOptimizer())
    yield RaiseLearningRate(raising_factor(setup.module, history))
    yield from (Clip(usual_norm(history)), ClipOutliers(), SkipBadSteps(), NormalizeGradients())
    yield _inputs(setup, history)
    yield _targets(setup, history)


def _inputs(setup: Setup, history: Sequence[Snapshot]) -> RescaleInputs:
    rms = next((value for s in history if np.isfinite(value := getattr(s, "input_rms", math.nan)) and value > 0), None)
    return RescaleInputs() if setup.batch is not None or rms is None else RescaleInputs(0.0, float(f"{rms:.3g}"))


def _targets(setup: Setup, history: Sequence[Snapshot]) -> RescaleTargets:
    """The first loss of a squared error is about the targets' mean square."""
    loss = next((snapshot.loss for snapshot in history if np.isfinite(snapshot.loss) and snapshot.loss > 0), None)
    if setup.batch is not None or loss is None:
        return RescaleTargets()
    return RescaleTargets(0.0, float(f"{loss**0.5:.3g}"))
