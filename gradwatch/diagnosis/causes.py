"""All rules together: findings and Snapshots become a ranked list of causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from gradwatch.diagnosis import data, depth, numerics, optimization, recurrent, structure, units
from gradwatch.diagnosis.run import Run
from gradwatch.records import Diagnosis, Finding, Snapshot

Rule = Callable[[Run], Iterable[Diagnosis]]

RULES: tuple[Rule, ...] = (
    depth.saturating,
    depth.too_small,
    depth.too_large,
    depth.too_deep,
    recurrent.recurrent,
    units.dead,
    units.saturated,
    optimization.learning_rate,
    optimization.warm_up,
    optimization.clipping,
    data.unscaled_input,
    data.unscaled_target,
    data.outlier,
    structure.detached,
    structure.zero_gradient,
    structure.softmax_head,
    numerics.unguarded,
    numerics.underflow,
)


def diagnose(findings: Sequence[Finding], history: Sequence[Snapshot]) -> list[Diagnosis]:
    """The causes that the numbers speak for, the likeliest first; each cause once.

    A finding that no rule explains has the cause ``not known``. Some causes need no finding: a clip that leaves nothing
    of the gradient, a softmax before cross-entropy.

    Args:
        findings: what the detectors found.
        history: the Snapshots that are still kept, in the order of their steps.

    Example:
        >>> snapshot = Snapshot(0, ("a", "b"), kinds=("Sigmoid", "Linear"), gain=[0.2, 0.6])
        >>> finding = Finding("vanishing", ("a",), 0, 1e-6, 1e-3, "it vanishes")
        >>> [diagnosis.cause for diagnosis in diagnose([finding], [snapshot])]
        ['saturating activation', 'initialization too small']
    """
    found: list[Diagnosis] = []
    if history:
        run = Run(tuple(findings), tuple(history))
        found = [diagnosis for rule in RULES for diagnosis in rule(run)]
    explained = {id(finding) for diagnosis in found for finding in diagnosis.findings}
    left = tuple(finding for finding in findings if id(finding) not in explained)
    if left:
        found.append(Diagnosis("not known", left[0].message, 0.1, left, ("look at the layers named",)))
    return _each_once(sorted(found, key=lambda diagnosis: -diagnosis.score))


def _each_once(ranked: Iterable[Diagnosis]) -> list[Diagnosis]:
    """The strongest of each cause, with the findings of all that name it."""
    kept: dict[str, Diagnosis] = {}
    for diagnosis in ranked:
        first = kept.setdefault(diagnosis.cause, diagnosis)
        together = tuple(dict.fromkeys((*first.findings, *diagnosis.findings)))
        kept[diagnosis.cause] = replace(first, findings=together)
    return list(kept.values())
