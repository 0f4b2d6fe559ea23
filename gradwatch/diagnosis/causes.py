"""A first, simple cause for each finding, from the numbers of the step where it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gradwatch.diagnosis.gains import BOUNDED, gain_by_kind, gains_as_text
from gradwatch.records import Diagnosis, Finding, Snapshot

_Cause = tuple[str, str, tuple[str, ...]]
_EARLY = 20  # steps: what is wrong so soon is a matter of the initialization, not of training


def diagnose(findings: Sequence[Finding], history: Sequence[Snapshot]) -> list[Diagnosis]:
    """One Diagnosis for each finding, in the same order.

    Args:
        findings: what the detectors found.
        history: the Snapshots that are still kept; the one nearest to a finding's step is its evidence.

    Example:
        >>> snapshot = Snapshot(0, ("a", "b"), kinds=("Sigmoid", "Linear"), gain=[0.2, 0.6])
        >>> finding = Finding("vanishing", ("a",), 0, 1e-6, 1e-3, "it vanishes")
        >>> diagnose([finding], [snapshot])[0].cause
        'saturating activation'
    """
    return [_diagnose(finding, history) for finding in findings]


def _diagnose(finding: Finding, history: Sequence[Snapshot]) -> Diagnosis:
    explain = _CAUSES.get(finding.kind)
    if explain is None or not history:
        return Diagnosis(finding, "not known", finding.message, ("look at the layers named",))
    nearest = min(history, key=lambda snapshot: abs(snapshot.step - finding.step))
    cause, evidence, remedies = explain(finding, nearest, history)
    return Diagnosis(finding, cause, evidence, remedies)


def _vanishing(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    recurrent = [layer for layer in finding.layers if layer in snapshot.calls]
    if recurrent:
        calls = snapshot.calls[recurrent[0]]
        evidence = f"Over {len(calls)} calls of {recurrent[0]} the norm falls from {calls[-1]:.1e} to {calls[0]:.1e}."
        kind = snapshot.kinds[snapshot.layers.index(recurrent[0])]
        gated = "LSTM" in kind or "GRU" in kind
        first = "a shorter way back through time" if gated else "an LSTM or GRU"
        return "recurrent depth", evidence, (first, "orthogonal recurrent weights", "shorter sequences")
    gains = gain_by_kind(snapshot)
    shrinking = {kind: gain for kind, (_, gain) in gains.items() if kind in BOUNDED and gain < 0.9}
    if shrinking:
        remedies = ("ReLU with He initialization", "a normalization layer after each Linear", "skip connections")
        return "saturating activation", gains_as_text(snapshot), remedies
    remedies = ("He or Xavier initialization", "a normalization layer", "skip connections")
    return "weights too small for the depth", gains_as_text(snapshot), remedies


def _exploding(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    recurrent = [layer for layer in finding.layers if layer in snapshot.calls]
    if recurrent:
        calls = snapshot.calls[recurrent[0]]
        evidence = f"Over {len(calls)} calls of {recurrent[0]} the norm grows from {calls[-1]:.1e} to {calls[0]:.1e}."
        return "recurrent depth", evidence, ("clip by the global norm", "orthogonal recurrent weights", "a GRU")
    if any(gain > 1.5 for _, gain in gain_by_kind(snapshot).values()):
        remedies = ("He or Xavier initialization", "a normalization layer", "clip by the global norm")
        return "weights too large for the depth", gains_as_text(snapshot), remedies
    evidence = f"The loss is {snapshot.loss:.3g} and the total gradient norm {snapshot.total_norm:.3g}."
    return (
        "unscaled input or target, or a learning rate too high",
        evidence,
        ("scale inputs and targets to mean 0 and deviation 1", "a lower learning rate", "clip by the global norm"),
    )


def _nonfinite(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    before = [s.total_norm for s in history if s.step < finding.step and np.isfinite(s.total_norm)]
    recent = before[-5:]
    if len(before) > 1 and max(recent) > 10 * float(np.median(before[:5])):
        evidence = f"Before it, the total gradient norm rose from {np.median(before[:5]):.2g} to {max(recent):.2g}."
        return "learning rate too high", evidence, ("a lower learning rate", "warm-up", "clip by the global norm")
    evidence = f"The total gradient norm was {recent[-1]:.2g} before it." if recent else "It was there from the start."
    remedies = ("check that batch for NaN and outliers", "an epsilon in divisions, logs and roots", "skip such steps")
    return "bad batch or an operation without a guard", evidence, remedies


def _dead(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    if finding.step < _EARLY:
        evidence = f"{finding.value:.0%} were dead at step {finding.step} already."
        return "initialization", evidence, ("He initialization with zero biases", "LeakyReLU", "a normalization layer")
    evidence = f"They died during training, by step {finding.step}."
    return "learning rate too high", evidence, ("a lower learning rate", "LeakyReLU", "clip by the global norm")


def _saturated(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    when = f"{finding.value:.0%} of the outputs were flat at step {finding.step}."
    if finding.step < _EARLY:
        remedies = ("Xavier initialization", "scale the inputs", "a normalization layer before it")
        return "weights or inputs too large", when, remedies
    return "learning rate too high", when, ("a lower learning rate", "a normalization layer before it", "weight decay")


def _stalled(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    norms = dict(zip(snapshot.params, np.asarray(snapshot.param_grad_norm).tolist(), strict=True))
    none = [name for name in finding.layers if np.isnan(norms.get(name, np.nan))]
    if none:
        advice = ("remove the detach() or no_grad() before the loss", "use the module, or freeze it")
        return "detached or unused part", f"The .grad of {', '.join(none[:3])} is None.", advice
    evidence = f"The gradient of {', '.join(finding.layers[:3])} is exactly zero."
    remedies = ("no softmax over one unit or before cross-entropy", "LeakyReLU instead of ReLU", "weights not 0")
    return "a head or activation that passes no gradient", evidence, remedies


def _spike(finding: Finding, snapshot: Snapshot, history: Sequence[Snapshot]) -> _Cause:
    what = ", ".join(finding.layers) or "It"
    evidence = f"{what} reached {finding.value:.3g}; the limit was {finding.threshold:.3g}."
    remedies = ("look at the batch of that step", "clip by the global norm", "a lower learning rate or warm-up")
    return "outlier batch or a learning rate too high", evidence, remedies


_CAUSES: dict[str, Callable[[Finding, Snapshot, Sequence[Snapshot]], _Cause]] = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "nonfinite": _nonfinite,
    "dead": _dead,
    "saturated": _saturated,
    "stalled": _stalled,
    "spike": _spike,
}
