"""Causes in the data: the scale of what goes in, of what should come out, and single batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import after, before, beginning, fallen, found, is_rising, told
from gradwatch.layer_kinds import is_normalization
from gradwatch.records import Array, Diagnosis, Finding, Snapshot

_LARGE_INPUT, _SMALL_INPUT, _LARGE_TARGET = 10.0, 0.01, 5.0


def unscaled_input(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """What the first layer is given is far from 1 in size, and something is wrong."""
    first = beginning(history)
    if first is None or not np.isfinite(first.input_rms) or _is_normalized(first):
        return None
    rms = first.input_rms
    trouble = bool(findings) or fallen(history) < 0.3
    if not trouble or _SMALL_INPUT <= rms <= _LARGE_INPUT or rms == 0:
        return None
    evidence = f"The root mean square of the first layer's input is {rms:.3g} (expected: about 1). {told(history)}"
    about = tuple(f for f in findings if f.kind != "spike" or f.step < 50)
    return Diagnosis("unscaled input", evidence, 0.95, about, ("standardize the inputs", "a BatchNorm in front"))


def unscaled_target(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The first loss is what targets much larger than the outputs give in a squared, or an absolute, error.

    A squared error of n outputs has the gradient norm 2 sqrt(loss / n) at the outputs, an absolute one 1 / sqrt(n);
    another loss that is large (a sum, a cross-entropy of huge outputs) has neither.
    """
    first = beginning(history)
    if first is None or not 0 <= first.loss < np.inf or not (findings or fallen(history) < 0.7):
        return None
    outputs = np.flatnonzero(~np.isnan(first.output_rms) & (first.grad_output_norm > 0))
    if not len(outputs):
        return None
    last = outputs[-1]
    rms, norm, mean = (float(c[last]) for c in (first.output_rms, first.grad_output_norm, first.grad_output_rms))
    entries = (norm / mean) ** 2
    target = np.sqrt(first.loss) if abs(norm / (2 * np.sqrt(first.loss / entries)) - 1) < 0.3 else 0.0
    target = first.loss if abs(norm * np.sqrt(entries) - 1) < 0.05 else target
    if not target > _LARGE_TARGET * max(rms, 1.0):
        return None
    evidence = (
        f"The first loss of {first.loss:.3g} is that of targets of about {target:.3g}, with outputs of {rms:.2g}. "
        f"{told(history)}"
    )
    return Diagnosis("unscaled target", evidence, 0.9, tuple(findings), ("standardize the targets", "a Huber loss"))


def outlier_batch(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """One step's loss stands out, and what came before it was calm; or what came in was not finite."""
    spikes, broken = found(findings, "spike"), found(findings, "nonfinite")
    remedies = ("look at that batch", "skip a step with a bad batch", "clip by the global norm")
    bad = [s.step for s in history if np.isinf(s.input_rms)]
    if bad and bad[0] > history[0].step and (len(bad) == 1 or not history[0].calls):  # a state comes in at each call
        evidence = f"What came in at step {bad[0]} holds NaN or Inf, and at no measured step before."
        return Diagnosis("outlier batch", evidence, 0.95, broken + spikes, remedies)
    for spike in spikes:
        all_before = before(history, spike.step - 3)  # the loss that follows a bad batch may be the larger one
        past = all_before[-20:]
        is_calm = (
            len(past) > 2
            and (spike.layers[0] != "loss" or np.max(past) < spike.value / 2)
            and not is_rising(all_before)
        )
        if is_calm or _is_peak(history, spike):
            back = after(history, spike.step)
            evidence = (
                f"{spike.layers[0]} jumped to {spike.value:.3g} at step {spike.step} (limit {spike.threshold:.3g}); "
                f"the losses before it had a median of {np.median(past):.3g}, those after it of {_median(back):.3g}."
            )
            return Diagnosis("outlier batch", evidence, 0.8, spikes + broken, remedies)
    if broken and not bad and not is_rising(before(history, broken[0].step)):
        evidence = f"The loss was calm until step {broken[0].step}, and is NaN or Inf from there on."
        return Diagnosis("outlier batch", evidence, 0.6, broken + spikes, remedies)
    return None


def _is_peak(history: Sequence[Snapshot], spike: Finding) -> bool:
    """The losses just before it and just after it are small: one batch of many odd ones, not a run that goes wrong."""
    sides = before(history, spike.step)[-4:-1], after(history, spike.step)[1:4]
    return all(len(side) > 2 and float(np.median(side)) < spike.value / 5 for side in sides)


def _median(row: Array) -> float:
    return float(np.median(row)) if len(row) else float("nan")


def _is_normalized(snapshot: Snapshot) -> bool:
    """The first layer itself normalizes what comes in."""
    return bool(snapshot.kinds) and is_normalization(snapshot.kinds[0])
