"""Findings and history of a run -> its causes, ranked, with what to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis import data, network, numerics, optimization, parts, signal, small_updates, step
from gradwatch.diagnosis.evidence import Evidence
from gradwatch.diagnosis.ranking import Rule, ask, explain_no_learning, unexplained
from gradwatch.records import Diagnoses, Diagnosis, Finding, Snapshot

__all__ = ["diagnose"]

# Of equal answers the earlier rule's comes first.
RULES: tuple[Rule[Evidence], ...] = (
    step.gradients_are_not_zeroed,
    step.replicas_out_of_sync,
    step.shapes_broadcast,
    step.step_without_effect,
    step.clip_without_effect,
    signal.unbounded_activation,
    network.saturating_activation,
    network.dead_relu,
    network.initialization_too_small,
    network.initialization_too_large,
    network.first_overflow,
    network.large_first_loss,
    optimization.learning_rate_too_high,
    optimization.missing_warm_up,
    optimization.clipping_too_hard,
    network.recurrent_depth,
    data.ignored_labels,
    data.constant_reward,
    data.unscaled_input,
    data.unscaled_target,
    data.outlier_batch,
    network.missing_normalization_or_skip,
    parts.zero_gradient_head,
    parts.frozen_or_detached_part,
    numerics.unguarded_operation,
    numerics.precision_underflow,
    small_updates.learning_rate_too_low,
    optimization.weight_decay_too_strong,
    numerics.unbounded_loss,
    signal.posterior_collapse,
)


def diagnose(findings: Sequence[Finding], history: Sequence[Snapshot]) -> list[Diagnosis]:
    """Return the causes of what goes wrong, the likeliest first; empty for a healthy run.

    Each rule weighs the evidence for one cause. A finding that no rule explains is listed at the end, as ``not known``,
    unless the loss has fallen by over half.

    Args:
        findings: what the detectors found.
        history: the Snapshots that are kept, in the order of their steps.

    Example:
        >>> snapshot = Snapshot(0, ("a", "b"), kinds=("Sigmoid", "Linear"), gain=[0.2, 0.6])
        >>> finding = Finding("vanishing", ("a",), 0, 1e-6, 1e-3, "it vanishes")
        >>> diagnose([finding], [snapshot])[0].cause
        'saturating activation'
    """
    evidence = Evidence(findings, _of_one_model(history))
    with np.errstate(all="ignore"):  # a run that turned NaN has Inf in its numbers
        answers = ask(RULES if evidence.history else (numerics.unguarded_operation,), evidence)
        answers = explain_no_learning(findings, answers)
        return Diagnoses([*answers, *unexplained(evidence, answers)])


def _of_one_model(history: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """Return the Snapshots with the layers of the latest one: a head may have been replaced during the run."""
    if all(snapshot.layers == history[-1].layers for snapshot in history):
        return history
    layers = set(history[-1].layers)
    return [snapshot for snapshot in history if set(snapshot.layers) == layers]
