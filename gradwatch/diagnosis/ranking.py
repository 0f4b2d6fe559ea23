"""All rules asked, and their answers ranked.

Where a rule does not name another source, its thresholds follow from the mechanism it tells of and were checked on half
``develop`` of ``tests/benchmarks/detection``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gradwatch.diagnosis import data, initialization, network, numerics, optimization, recurrent
from gradwatch.diagnosis.evidence import fallen
from gradwatch.records import Diagnosis, Finding, Snapshot

Rule = Callable[[Sequence[Finding], Sequence[Snapshot]], Diagnosis | None]

RULES: tuple[Rule, ...] = (
    network.saturating_activation,
    network.dead_relu,
    initialization.initialization_too_small,
    initialization.initialization_too_large,
    optimization.learning_rate_too_high,
    optimization.missing_warm_up,
    optimization.clipping_too_hard,
    recurrent.recurrent_depth,
    data.unscaled_input,
    data.unscaled_target,
    data.outlier_batch,
    network.missing_normalization_or_skip,
    network.zero_gradient_head,
    network.frozen_or_detached_part,
    numerics.unguarded_operation,
    numerics.precision_underflow,
    optimization.learning_rate_too_low,
    optimization.weight_decay_too_strong,
    optimization.unbounded_loss,
)


def diagnose(findings: Sequence[Finding], history: Sequence[Snapshot]) -> list[Diagnosis]:
    """The causes of what goes wrong, the likeliest first; empty for a healthy run.

    Each rule weighs the evidence for one cause, on its own. Of equal scores the one that explains more comes first. A
    finding that no rule explains is listed at the end, as ``not known``, unless the loss has fallen by over half.

    Args:
        findings: what the detectors found.
        history: the Snapshots that are still kept, in the order of their steps.

    Example:
        >>> snapshot = Snapshot(0, ("a", "b"), kinds=("Sigmoid", "Linear"), gain=[0.2, 0.6])
        >>> finding = Finding("vanishing", ("a",), 0, 1e-6, 1e-3, "it vanishes")
        >>> diagnose([finding], [snapshot])[0].cause
        'saturating activation'
    """
    history = _of_one_model(history)
    with np.errstate(all="ignore"):  # NaN and Inf are what rules look for
        answers = [answer for rule in RULES if (answer := rule(findings, history)) is not None]
    answers.sort(key=lambda answer: (-answer.score, -len(answer.findings)))
    return [*answers, *_unexplained(findings, answers, history)]


def _of_one_model(history: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """Return the Snapshots of the layers of the latest one: a head may have been replaced during the run."""
    if all(snapshot.layers == history[-1].layers for snapshot in history):
        return history
    layers = set(history[-1].layers)
    return [snapshot for snapshot in history if set(snapshot.layers) == layers]


def _unexplained(
    findings: Sequence[Finding], answers: Sequence[Diagnosis], history: Sequence[Snapshot]
) -> Iterator[Diagnosis]:
    explained = {finding for answer in answers for finding in answer.findings}
    left = tuple(finding for finding in findings if finding not in explained)
    if left and not fallen(history) > 0.5:  # one that learns is left to the findings' own words
        evidence = " ".join(dict.fromkeys(finding.message for finding in left))
        yield Diagnosis("not known", evidence, 0.1, left, ("look at the layers named",))
