"""Remedies: values that change a copy of a model or its training, and what they are made of."""

from gradwatch.remedies.activation import ReplaceActivations
from gradwatch.remedies.clipping import Clip, RemoveClip
from gradwatch.remedies.detached import TrainAll, UnfreezeAll
from gradwatch.remedies.gradients import ClipOutliers, NormalizeGradients, SkipBadSteps
from gradwatch.remedies.guard import GuardOperations
from gradwatch.remedies.head import FixHead
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.inputs import RescaleInputs
from gradwatch.remedies.keep_graph import KeepGraph
from gradwatch.remedies.learning_rate import LowerLearningRate, RaiseLearningRate
from gradwatch.remedies.loss_scale import ScaleLoss
from gradwatch.remedies.normalization import InsertNormalization
from gradwatch.remedies.normalize_first import NormalizeFirst
from gradwatch.remedies.optimizer import ChangeOptimizer
from gradwatch.remedies.precision import UseBfloat16
from gradwatch.remedies.recurrent import LSTMLikeRNN, OrthogonalRecurrence, ReplaceRecurrence
from gradwatch.remedies.recurrent_weights import draw_recurrent_
from gradwatch.remedies.remedy import Advice, Combination, Remedy
from gradwatch.remedies.residual import AddSkips, Skip
from gradwatch.remedies.result import Trial
from gradwatch.remedies.rows import Row
from gradwatch.remedies.scaling import Rescale, Standardize
from gradwatch.remedies.schedule import WarmUp
from gradwatch.remedies.setup import NotApplicable, Setup
from gradwatch.remedies.suggestion import suggest
from gradwatch.remedies.targets import RescaleTargets
from gradwatch.remedies.trial import try_remedies

__all__ = [
    "AddSkips",
    "Advice",
    "ChangeOptimizer",
    "Clip",
    "ClipOutliers",
    "Combination",
    "FixHead",
    "GuardOperations",
    "InitializeAgain",
    "InsertNormalization",
    "KeepGraph",
    "LSTMLikeRNN",
    "LowerLearningRate",
    "NormalizeFirst",
    "NormalizeGradients",
    "NotApplicable",
    "OrthogonalRecurrence",
    "RaiseLearningRate",
    "Remedy",
    "RemoveClip",
    "ReplaceActivations",
    "ReplaceRecurrence",
    "Rescale",
    "RescaleInputs",
    "RescaleTargets",
    "Row",
    "ScaleLoss",
    "Setup",
    "Skip",
    "SkipBadSteps",
    "Standardize",
    "TrainAll",
    "Trial",
    "UnfreezeAll",
    "UseBfloat16",
    "WarmUp",
    "draw_recurrent_",
    "suggest",
    "try_remedies",
]
