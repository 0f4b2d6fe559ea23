"""Which remedies to try, the most promising first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from gradwatch.records import Snapshot
from gradwatch.remedies.candidates import candidates
from gradwatch.remedies.detached import TrainAll, UnfreezeAll
from gradwatch.remedies.gradients import SkipBadSteps
from gradwatch.remedies.hints import broke_at_once
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.keep_graph import KeepGraph
from gradwatch.remedies.learning_rate import LowerLearningRate
from gradwatch.remedies.normalization import InsertNormalization
from gradwatch.remedies.normalize_first import NormalizeFirst
from gradwatch.remedies.optimizer import ChangeOptimizer
from gradwatch.remedies.prediction import Flow, health, predicted_flow
from gradwatch.remedies.remedy import Advice, Remedy
from gradwatch.remedies.residual import AddSkips
from gradwatch.remedies.schedule import WarmUp
from gradwatch.remedies.setup import NotApplicable, NothingToChange, Setup

# Causes that lie in how the network passes the gradient on: a remedy is then worth what it makes of that.
_OF_FLOW = {
    "saturating activation",
    "initialization too small",
    "initialization too large",
    "missing normalization or skip",
}
_VARIANT = 0.6
_LATER = 0.4
_TELLING = 0.05  # two worths that differ by less than it are alike
_WORTH_SAYING = 0.6  # a remedy that treats a cause so directly is told even where it can't be applied from outside

ADVICE = (
    Advice("unguarded operation", "Guard the logs, roots and divisions there.", "x = torch.log(x.clamp(min=1e-6))"),
    Advice("outlier batch", "Look at the batch of that step, and clean or drop it in the data."),
    Advice("frozen or detached part", "Remove the detach(), no_grad() or .data between that part and the loss."),
    Advice("weight decay too strong", "Lower the weight decay.", "AdamW(model.parameters(), weight_decay=0.01)"),
    Advice("unbounded loss", "Look at the sign of the loss: it falls without end, so that nothing is learned by it."),
    Advice("precision underflow", "Let the loss scaler find its scale.", "scaler = torch.amp.GradScaler()"),
)  # fmt: skip


def suggest(
    diagnoses: Iterable[Any], module: nn.Module | Setup, history: Sequence[Snapshot] = (), *, batch: Any = None
) -> list[Remedy]:
    """Remedies that can be applied to a module, ranked by the diagnosed causes and what the gains predict.

    A remedy is worth, for each cause, the diagnosis's score times how directly it treats that cause; where the cause
    lies in the network, also how well the gradient would then reach the first layer. What treats a cause but can't be
    applied from outside comes as an :class:`Advice`.

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
        >>> suggest([], network)
        []
    """
    setup = module if isinstance(module, Setup) else Setup(module, batch=batch)
    scores = _scores(diagnoses)
    if not scores:
        return []
    flow = Flow(setup.module, history, setup.batch)
    hinted = (SkipBadSteps,) if broke_at_once(history) else ()
    ranked: list[tuple[float, Remedy]] = []
    for remedy in candidates(setup, history):
        sure = 2.0 if isinstance(remedy, hinted) else 1.0
        ranked += [(sure * _worth(one, remedy, scores, flow), one) for one in _applicable(remedy, setup, scores)]
    ranked += [(0.2 * scores[advice.cause], advice) for advice in ADVICE if advice.cause in scores]
    return [remedy for worth, remedy in _varied(_sorted(ranked)) if worth > 0]


def usual(setup: Setup) -> list[Remedy]:
    """What helps most often, of what can be applied: for a training that goes badly and shows no cause.

    Example:
        >>> usual(Setup(nn.Linear(2, 1).requires_grad_(False)))
        [UnfreezeAll()]
    """
    parts = UnfreezeAll(), TrainAll(), KeepGraph()
    steps = WarmUp(), LowerLearningRate(), ChangeOptimizer()
    network = NormalizeFirst(), InsertNormalization("batch"), InitializeAgain("orthogonal"), AddSkips()
    tried = (_applicable(remedy, setup, dict.fromkeys(remedy.treats, 1.0)) for remedy in (*parts, *steps, *network))
    return [remedy for found in tried for remedy in found if not isinstance(remedy, Advice)]


def _sorted(ranked: Iterable[tuple[float, Remedy]]) -> list[tuple[float, Remedy]]:
    """The most worthy first; what differs by less than theory can tell stays in the candidates' order."""
    return sorted(ranked, key=lambda pair: -round(pair[0] / _TELLING))


def _varied(ranked: list[tuple[float, Remedy]]) -> list[tuple[float, Remedy]]:
    """A variant of a remedy that stands before it is worth less: where that fails, it may fail for the same reason."""
    seen: list[type[Remedy]] = []
    changed = []
    for worth, remedy in ranked:
        changed.append((worth * _VARIANT ** seen.count(type(remedy)), remedy))
        seen += [type(remedy)] if not isinstance(remedy, Advice) else []
    return _sorted(changed)


def _scores(diagnoses: Iterable[Any]) -> dict[str, float]:
    """Cause -> its score in units of the highest; a later one counts less, as it often follows from the first."""
    scores: dict[str, float] = {}
    for diagnosis in diagnoses:
        scores[diagnosis.cause] = max(scores.get(diagnosis.cause, 0.0), float(getattr(diagnosis, "score", 1.0)))
    ranked = sorted(scores.items(), key=lambda pair: -pair[1])
    highest = ranked[0][1] if ranked else 0.0
    return {c: score / highest * _LATER**place for place, (c, score) in enumerate(ranked)} if highest > 0 else {}


def _worth(found: Remedy, remedy: Remedy, scores: dict[str, float], flow: Flow) -> float:
    total = 0.0
    for cause, score in scores.items():
        works = health(predicted_flow(remedy, flow)) if cause in _OF_FLOW and remedy.changes_model else 1.0
        total += score * remedy.fit_for(cause) * works
    return total / 2 if isinstance(found, Advice) else total


def _applicable(remedy: Remedy, setup: Setup, scores: dict[str, float]) -> Iterator[Remedy]:
    """The remedy; an advice where it can't be applied but would treat a cause well; else nothing."""
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
    """The code of a remedy; empty where it can't be told."""
    try:
        return remedy.patch(setup)
    except Exception:  # as above
        return ""
