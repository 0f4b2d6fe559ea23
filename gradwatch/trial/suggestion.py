"""The remedies to try, the most promising first, with settings that the measured steps speak for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer

from gradwatch.causes import STEPS
from gradwatch.layer_kinds import RECTIFIERS
from gradwatch.records import Array, Snapshot
from gradwatch.remedies.activation import ReplaceActivations, fast_growing
from gradwatch.remedies.branches import ScaleBranches
from gradwatch.remedies.gradients import CLIP, Clip, ClipOutliers, NormalizeGradients, RemoveClip, SkipBadSteps
from gradwatch.remedies.guard import GuardOperations
from gradwatch.remedies.head import FixHead, RemoveLastActivation
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.normalization import (
    InsertNormalization,
    NormalizeFirst,
    ResetNormalization,
    has_normalization,
    starts_faint,
)
from gradwatch.remedies.optimizer import ChangeOptimizer, LowerLearningRate, RaiseLearningRate, WarmUp, optimizers_of
from gradwatch.remedies.precision import ScaleLoss, UseBfloat16
from gradwatch.remedies.recurrent import LONG, OrthogonalRecurrence, ReplaceRecurrence, time_steps
from gradwatch.remedies.remedy import Advice, Combination, NotApplicable, NothingToChange, Remedy, Setup
from gradwatch.remedies.residual import AddSkips
from gradwatch.remedies.scaling import RescaleInputs, RescaleTargets
from gradwatch.remedies.smooth import SmoothSteps
from gradwatch.remedies.unfreeze import KeepGraph, TrainAll, UnfreezeAll
from gradwatch.trial.prediction import Flow, health, predicted_flow

# Causes in the way that the network passes the gradient on: a remedy is then worth what it makes of that.
_OF_FLOW = {
    "saturating activation", "initialization too small", "initialization too large", "missing normalization or skip",
}  # fmt: skip
_VARIANT = 0.6
_LATER = 0.4
_TELLING = 0.05  # two worths that differ by less than it are alike
_WORTH_SAYING = 0.6  # fit from which on a remedy is told even where it can't be applied from outside
_SURE = 2.0  # times the worth of what the run itself speaks for
_EVIDENT = 0.5  # worth of a remedy whose fault no diagnosis names
_NO_WARM_UP, _TOO_HIGH = "missing warm-up", "learning rate too high"
_BEYOND_WARM_UP = 0.5  # of the weights, by one update: a warm-up ends in steps as large
_FIRST = 5  # steps, of a training that may go wrong later
_LARGEST = 20.0
_RISE = 10.0
# Of the weights, in the layer of the median. The healthy small networks of tests/benchmarks/detection start with 0.6 %
# to 9 %, large ones with about 0.1 % (A. Karpathy, Neural networks: zero to hero, 2022).
GOOD_STEP = 0.02
USUAL_STEP = 1e-3
_LEAST, _MOST, _OTHERWISE = 1e-4, 0.3, 0.1

ADVICE = tuple(
    Advice(cause, f"{step.text[0].upper()}{step.text[1:]}.", step.line)
    for cause, steps in STEPS.items()
    for step in steps
    if step.line is not None
)


def suggest(
    diagnoses: Iterable[Any], module: nn.Module | Setup, history: Sequence[Snapshot] = (), *, batch: Any = None
) -> list[Remedy]:
    """Return remedies that can be applied to a module, ranked by the diagnosed causes and what the gains predict.

    For each cause a remedy is worth the diagnosis's score times its fit in :mod:`gradwatch.causes`. Where the cause
    lies in the network, it is also weighed by how well the gradient would then reach the first layer. A treatment that
    only the user's own code allows comes as an :class:`Advice`.

    Args:
        diagnoses: with ``cause`` and ``score``, as ``monitor.diagnosis()`` gives them.
        module: a module, or its :class:`Setup`.
        history: measured steps; without them the weights tell what the gradient will do.
        batch: of training data, where ``module`` is no Setup that has one.

    Example:
        >>> from types import SimpleNamespace
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2))
        >>> suggest([SimpleNamespace(cause="missing normalization or skip", score=0.9)], network)[:2]
        [AddSkips(), InsertNormalization(kind='batch')]
        >>> suggest([], network)  # it shows nothing by itself
        []
    """
    setup = module if isinstance(module, Setup) else Setup(module, batch=batch)
    scores = _with_steps_judged(_scores(diagnoses), setup, history)
    if not scores:
        return evident(setup)
    flow = Flow(setup.module, history, setup.batch)
    # Norms near zero, sums and activations that grow fast, are a fault whatever else follows from them.
    hinted = (ResetNormalization, ScaleBranches, *((SkipBadSteps,) if broke_at_once(history) else ()))
    ranked: list[tuple[float, Remedy]] = []
    own = _own(setup)
    for remedy in candidates(setup, history):
        sure = _SURE if isinstance(remedy, hinted) or remedy in own else 1.0
        ranked += [(sure * _worth(one, remedy, scores, flow), one) for one in _applicable(remedy, setup, scores)]
    known = [remedy for _, remedy in ranked]
    ranked += [(_EVIDENT, remedy) for remedy in evident(setup) if remedy not in known]
    ranked += [(0.2 * scores[advice.cause], advice) for advice in ADVICE if advice.cause in scores]
    return [_clipped(remedy, setup) for worth, remedy in _varied(_sorted(ranked)) if worth > 0]


def _clipped(remedy: Remedy, setup: Setup) -> Remedy:
    """Return a remedy of a recurrence over many steps with a clip: one large step would shut its gates again."""
    if not isinstance(remedy, (ReplaceRecurrence, OrthogonalRecurrence)) or not setup.trains_itself:
        return remedy
    is_long = max(time_steps(setup).values(), default=0) >= LONG
    return Combination((remedy, Clip())) if is_long and not setup.options.get(CLIP) else remedy


def evident(setup: Setup) -> list[Remedy]:
    """Return the remedies of faults that the set-up itself shows, whatever the training does.

    These are an activation at the end that can't give the batch's targets, and weights of normalization layers that
    start near zero. At zero they start on purpose, where a skip goes around.

    Example:
        >>> evident(Setup(nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())))
        []
    """
    found: list[Remedy] = [ResetNormalization()] if starts_faint(setup.module) else []
    found += [RemoveLastActivation()] if setup.batch is not None else []
    tried = (_applicable(remedy, setup, dict.fromkeys(remedy.treats, 1.0)) for remedy in found)
    return [remedy for one in tried for remedy in one if not isinstance(remedy, Advice)]


def usual(setup: Setup) -> list[Remedy]:
    """Return what helps most often, as far as it applies: for a training that goes badly and shows no cause.

    Example:
        >>> usual(Setup(nn.Linear(2, 1).requires_grad_(False)))
        [UnfreezeAll()]
    """
    parts = UnfreezeAll(), TrainAll(), KeepGraph()
    steps = WarmUp(), LowerLearningRate(), ChangeOptimizer()
    network = (
        ResetNormalization(),
        NormalizeFirst(),
        ScaleBranches(),
        InsertNormalization("batch"),
        InitializeAgain("orthogonal"),
        AddSkips(),
    )
    tried = (_applicable(remedy, setup, dict.fromkeys(remedy.treats, 1.0)) for remedy in (*parts, *steps, *network))
    return [remedy for found in tried for remedy in found if not isinstance(remedy, Advice)]


def bounding(setup: Setup, history: Sequence[Snapshot] = ()) -> list[Remedy]:
    """Return all that bounds a run which turns NaN, as far as it applies: steps, signals and single operations.

    Example:
        >>> bounding(Setup(nn.Linear(2, 1)))
        []
    """
    factor = rate_factor(setup.module, history)
    steps = Clip(usual_norm(history)), LowerLearningRate(min(factor, _OTHERWISE)), SkipBadSteps()
    normalized = ScaleBranches(), InsertNormalization("batch"), InsertNormalization()
    network = *normalized, InitializeAgain(), GuardOperations(), *_own(setup)
    tried = (_applicable(remedy, setup, dict.fromkeys(remedy.treats, 1.0)) for remedy in (*network, *steps))
    return [remedy for found in tried for remedy in found if not isinstance(remedy, Advice)] if history else []


def _sorted(ranked: Iterable[tuple[float, Remedy]]) -> list[tuple[float, Remedy]]:
    """Return the most worthy first. Worths that are too near for theory to tell keep the candidates' order."""
    return sorted(ranked, key=lambda pair: -round(pair[0] / _TELLING))


def _varied(ranked: list[tuple[float, Remedy]]) -> list[tuple[float, Remedy]]:
    """Lower the worth of a variant of an earlier remedy: where that one fails, this may fail for the same reason."""
    seen: list[type[Remedy]] = []
    changed = []
    for worth, remedy in ranked:
        changed.append((worth * _VARIANT ** seen.count(type(remedy)), remedy))
        seen += [type(remedy)] if not isinstance(remedy, Advice) else []
    return _sorted(changed)


def _scores(diagnoses: Iterable[Any]) -> dict[str, float]:
    """Return the causes' scores over the highest. Later ones count less, as they often follow from the first."""
    scores: dict[str, float] = {}
    for diagnosis in diagnoses:
        scores[diagnosis.cause] = max(scores.get(diagnosis.cause, 0.0), float(getattr(diagnosis, "score", 1.0)))
    ranked = sorted(scores.items(), key=lambda pair: -pair[1])
    highest = ranked[0][1] if ranked else 0.0
    return {c: score / highest * _LATER**place for place, (c, score) in enumerate(ranked)} if highest > 0 else {}


def _with_steps_judged(scores: dict[str, float], setup: Setup, history: Sequence[Snapshot]) -> dict[str, float]:
    """Return the scores; where a warm-up would end in steps that are as large, of a rate too high in its place."""
    score = scores.get(_NO_WARM_UP, 0.0)
    if not score or not first_step(setup.module, history) > _BEYOND_WARM_UP:
        return scores
    rate = max(scores.get(_TOO_HIGH, 0.0), score)
    return {**scores, _TOO_HIGH: rate, _NO_WARM_UP: _LATER * score}


def _worth(found: Remedy, remedy: Remedy, scores: dict[str, float], flow: Flow) -> float:
    total = 0.0
    for cause, score in scores.items():
        works = health(predicted_flow(remedy, flow)) if cause in _OF_FLOW and remedy.changes_model else 1.0
        total += score * remedy.fit_for(cause) * works
    return total / 2 if isinstance(found, Advice) else total


def _applicable(remedy: Remedy, setup: Setup, scores: dict[str, float]) -> Iterator[Remedy]:
    """Yield the remedy, or an advice where it can't be applied but would treat a cause well, or nothing."""
    fits = {cause: remedy.fit_for(cause) for cause in scores}
    cause = max(fits, key=lambda known: fits[known])
    if not fits[cause]:
        return
    try:
        remedy.apply(setup)
        yield remedy
    except NothingToChange:
        return
    except NotApplicable as error:
        if fits[cause] >= (1.0 if remedy.changes_model else _WORTH_SAYING):
            yield Advice(cause, str(error), patch_or_nothing(remedy, setup))
    except Exception:  # a module unlike others, on which the remedy breaks: no reason to break the list
        return


def patch_or_nothing(remedy: Remedy, setup: Setup) -> str:
    """Return the code of a remedy; empty where it can't be told."""
    try:
        return remedy.patch(setup)
    except Exception:  # as above
        return ""


def candidates(setup: Setup, history: Sequence[Snapshot] = ()) -> Iterator[Remedy]:
    """Yield every remedy with the settings that the history speaks for, the simpler of two alike first."""
    yield ResetNormalization()
    yield from (ReplaceActivations(), ReplaceActivations("SELU"), ReplaceActivations("LeakyReLU", RECTIFIERS))
    yield from _own(setup)
    if not has_normalization(setup.module):
        yield from (InsertNormalization("batch"), InsertNormalization())
    yield from (NormalizeFirst(), ScaleBranches(), InitializeAgain(), InitializeAgain("orthogonal"), AddSkips())
    yield from (
        RemoveLastActivation(),
        FixHead(),
        UnfreezeAll(),
        TrainAll(),
        KeepGraph(),
        SmoothSteps(),
        GuardOperations(),
        UseBfloat16(),
        ScaleLoss(),
    )
    yield from (ReplaceRecurrence(), ReplaceRecurrence("LSTM"), OrthogonalRecurrence(), RemoveClip())
    factor = rate_factor(setup.module, history)
    yield from (LowerLearningRate(factor), LowerLearningRate(float(f"{factor / 10:.0e}")), WarmUp(), ChangeOptimizer())
    yield RaiseLearningRate(raising_factor(setup.module, history))
    yield from (Clip(usual_norm(history)), ClipOutliers(), SkipBadSteps(), NormalizeGradients())
    yield _inputs(setup, history)
    yield _targets(setup, history)


def _own(setup: Setup) -> list[ReplaceActivations]:
    """Return the remedy of the user's own activations that grow fast, if there are some."""
    kinds = fast_growing(setup)
    return [ReplaceActivations(kinds=kinds)] if kinds else []


def _inputs(setup: Setup, history: Sequence[Snapshot]) -> RescaleInputs:
    rms = next((value for s in history if np.isfinite(value := getattr(s, "input_rms", math.nan)) and value > 0), None)
    return RescaleInputs() if setup.batch is not None or rms is None else RescaleInputs(0.0, float(f"{rms:.3g}"))


def _targets(setup: Setup, history: Sequence[Snapshot]) -> RescaleTargets:
    """Return the remedy with the targets' scale: the first loss of a squared error is about their mean square."""
    loss = next((snapshot.loss for snapshot in history if np.isfinite(snapshot.loss) and snapshot.loss > 0), None)
    if setup.batch is not None or loss is None:
        return RescaleTargets()
    return RescaleTargets(0.0, float(f"{loss**0.5:.3g}"))


def usual_norm(history: Sequence[Snapshot]) -> float:
    """Return twice the usual total norm of the first steps, a bound that touches few healthy ones; at most 20, else 1.

    Example:
        >>> usual_norm([Snapshot(step, ("a",), total_norm=0.4) for step in range(3)]), usual_norm([])
        (0.8, 1.0)
    """
    norms = np.array([snapshot.total_norm for snapshot in history])
    norms = norms[np.isfinite(norms) & (norms > 0)][:_FIRST]
    bound = 2 * float(np.median(norms)) if len(norms) else 1.0
    return float(f"{bound:.2g}") if bound <= _LARGEST else 1.0


def broke_at_once(history: Sequence[Snapshot]) -> bool:
    """Return True if NaN or Inf followed an ordinary step: a bad batch, not a training that had grown out of hand.

    Example:
        >>> history = [Snapshot(step, ("a",), loss=loss) for step, loss in enumerate([1.0, 0.9, float("inf")])]
        >>> broke_at_once(history), broke_at_once(history[:2])
        (True, False)
    """
    losses = np.concatenate([_losses(snapshot) for snapshot in history]) if history else np.empty(0)
    bad = np.flatnonzero(np.isinf(losses))
    before = losses[: bad[0]] if len(bad) else losses[:0]
    return bool(len(before) and before[-1] < _RISE * np.median(before))


def _losses(snapshot: Snapshot) -> Array:
    known = snapshot.trace_loss if len(snapshot.trace_loss) else np.array([snapshot.loss])
    losses: Array = known[~np.isnan(known)]
    return losses


def rate_factor(module: nn.Module, history: Sequence[Snapshot] = ()) -> float:
    """Return the factor that brings the first update to 2 % of the weights; 0.1 where its size is unknown.

    Example:
        >>> rate_factor(nn.Linear(1, 1))
        0.1
    """
    return min(max(_factor_to(GOOD_STEP, first_step(module, history), _OTHERWISE), _LEAST), _MOST)


def raising_factor(module: nn.Module, history: Sequence[Snapshot] = ()) -> float:
    """Return the factor that brings a tiny first update to 0.1 % of the weights; 100 where its size is unknown.

    Example:
        >>> raising_factor(nn.Linear(1, 1))
        100.0
    """
    return max(_factor_to(USUAL_STEP, first_step(module, history), 100.0), 10.0)


def _factor_to(good: float, step: float, otherwise: float) -> float:
    return float(f"{good / step:.0e}") if math.isfinite(step) and step > 0 else otherwise


def first_step(module: nn.Module, history: Sequence[Snapshot] = ()) -> float:
    """Return the first update over the weights, in the median layer; NaN where it is unknown."""
    optimizers = optimizers_of(module)
    if not optimizers:
        return _median(np.asarray(getattr(history[0], "update_to_weight", []), np.float64)) if history else math.nan
    first = optimizers[0]
    return _of_sgd(first, history) if isinstance(first, SGD) else _of_adaptive(first)


def _of_sgd(optimizer: Optimizer, history: Sequence[Snapshot]) -> float:
    """Return rate times gradient, which momentum adds up."""
    if not history:
        return math.nan
    group = optimizer.param_groups[0]
    momentum = float(group.get("momentum", 0.0))
    return float(group["lr"]) * _median(history[0].grad_to_weight_ratio) / max(1 - momentum, 1e-3)


def _of_adaptive(optimizer: Optimizer) -> float:
    """Return rate over weights: each entry moves by about the rate, whatever its gradient."""
    weights = [p for group in optimizer.param_groups for p in group["params"] if not is_lazy(p) and p.dim() > 1]
    sizes = np.array([weight.detach().float().square().mean().sqrt().item() for weight in weights])
    rate = float(optimizer.param_groups[0]["lr"])
    return _median(rate / np.where(sizes > 0, sizes, np.nan))


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
