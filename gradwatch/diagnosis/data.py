"""Causes in the data: the scale of inputs and targets, and single batches."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.evidence import Evidence, is_rising
from gradwatch.diagnosis.numerics import named_operation
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.layer_kinds import is_normalization
from gradwatch.records import Array, Finding

# Initializations are made for inputs of unit variance (LeCun et al., Efficient BackProp, 1998, 4.3).
SMALL_INPUT, LARGE_INPUT = 0.01, 10.0
LARGE_TARGET = 5.0  # times the outputs
GOES_WELL, LEARNS_TARGETS = 0.3, 0.7  # share of the first loss that is gone
SOON = 50  # steps: a later spike has nothing to do with the scale of all inputs
BEYOND = 0.1  # share of the targets that are out of reach: a few may be noise
OF_LOSS = 0.25  # of the last losses, that the targets out of reach leave: less than that is not the reason
SQUARED_TOLERANCE, ABSOLUTE_TOLERANCE = 0.3, 0.05  # of the gradient that such a loss has at the outputs
BEFORE_SPIKE = 3  # steps: the loss that follows a bad batch may be the larger one
WINDOW, FEW = 20, 2  # losses
CALM = 2.0  # the spike over the largest loss before it
PEAK = 5.0  # the spike over the median losses just before and after it
SIDE = 4  # losses, on either side of a spike
ORDINARY = 2.0  # times the largest input of the steps before: one bad row in a batch of many makes more of it


IGNORED, CONSTANT = "ignored labels", "constant reward"  # a trainer tells these, in ``Snapshot.told``


@rule("ignored labels", 0.98)
def ignored_labels(evidence: Evidence) -> Claim | None:
    """All labels of a batch are -100, which a cross-entropy leaves out."""
    about = evidence.found("nonfinite", "stalled", "vanishing", "not-learning")
    count = sum(snapshot.told == IGNORED for snapshot in evidence.history)
    text = f"All labels are -100, which the loss leaves out, in {count} of {len(evidence.history)} measured steps."
    return Claim(text, about) if count and about else None


@rule("constant reward", 0.97)
def constant_reward(evidence: Evidence) -> Claim | None:
    """All completions of a prompt get the same reward, so that no advantage, and no gradient, is left."""
    about = evidence.found("stalled", "vanishing", "unmoved", "not-learning")
    count = sum(snapshot.told == CONSTANT for snapshot in evidence.history)
    text = (
        f"All completions of each prompt got the same reward in {count} of {len(evidence.history)} measured steps: the "
        "advantages are zero, and so is their gradient."
    )
    return Claim(text, about) if count > len(evidence.history) / 2 and about else None


@rule("unscaled input", 0.95, from_start=True)
def unscaled_input(evidence: Evidence) -> Claim | None:
    """The input of the first layer is far from 1 in size, and something is wrong."""
    first = evidence.first
    rms = first.input_rms
    normalizes_it = bool(first.kinds) and is_normalization(first.kinds[0])
    if not np.isfinite(rms) or rms == 0 or SMALL_INPUT <= rms <= LARGE_INPUT or normalizes_it:
        return None
    if not (evidence.findings or evidence.is_stuck(GOES_WELL)):
        return None
    text = f"The root mean square of the first layer's input is {rms:.3g} (expected: about 1). {evidence.loss_in_words}"
    return Claim(text, tuple(f for f in evidence.findings if f.kind != "spike" or f.step < SOON))


@rule("unscaled target", {"out of reach": 0.95, "": 0.9}, from_start=True)
def unscaled_target(evidence: Evidence) -> Claim | None:
    """The targets are far larger than the outputs, or the network's last activation cannot give them."""
    return _out_of_reach(evidence) or _large_target(evidence)


def _out_of_reach(evidence: Evidence) -> Claim | None:
    """Look for targets beyond the range of the last activation, which make up a good part of the loss that is left."""
    seen = next((each for each in evidence.history if each.out_of_reach > BEYOND), None)
    losses = evidence.losses[np.isfinite(evidence.losses)]
    if seen is None or not len(losses) or not seen.least_error > OF_LOSS * float(np.median(losses[-WINDOW:])):
        return None
    text = (
        f"The network ends in a {seen.last_activation}, and {seen.out_of_reach:.0%} of the targets are beyond its "
        f"range: the squared error cannot come below {seen.least_error:.3g}. {evidence.loss_in_words}"
    )
    return Claim(text, evidence.findings, "out of reach")


def _large_target(evidence: Evidence) -> Claim | None:
    """The first loss is what targets much larger than the outputs give in a squared, or an absolute, error.

    A squared error of n outputs has the gradient norm 2 sqrt(loss / n) at the outputs, an absolute one 1 / sqrt(n).
    Another large loss (a sum, a cross-entropy of huge outputs) has neither.
    """
    first = evidence.first
    if not 0 <= first.loss < np.inf or not (evidence.findings or evidence.is_stuck(LEARNS_TARGETS)):
        return None
    outputs = np.flatnonzero(~np.isnan(first.output_rms) & (first.grad_output_norm > 0))
    if not len(outputs):
        return None
    last = outputs[-1]
    rms, norm, grad_rms = (float(c[last]) for c in (first.output_rms, first.grad_output_norm, first.grad_output_rms))
    entries = (norm / grad_rms) ** 2
    target = 0.0
    if abs(norm / (2 * np.sqrt(first.loss / entries)) - 1) < SQUARED_TOLERANCE:
        target = float(np.sqrt(first.loss))
    if abs(norm * np.sqrt(entries) - 1) < ABSOLUTE_TOLERANCE:
        target = first.loss
    if not target > LARGE_TARGET * max(rms, 1.0):
        return None
    text = (
        f"The first loss of {first.loss:.3g} is that of targets of about {target:.3g}, with outputs of {rms:.2g}. "
        f"{evidence.loss_in_words}"
    )
    return Claim(text, evidence.findings)


@rule("outlier batch", {"input": 0.95, "spike": 0.8, "nonfinite": 0.6})
def outlier_batch(evidence: Evidence) -> Claim | None:
    """One step's loss stands out from calm losses before it, or one step's input was not finite."""
    in_batch = tuple(finding for finding in evidence.found("nonfinite") if finding.case == "batch")
    if in_batch:
        return Claim(in_batch[0].message, in_batch, "not finite", "input")
    if named_operation(evidence) is not None:
        return None
    spikes, broken, history = evidence.found("spike"), evidence.found("nonfinite"), evidence.history
    bad = [snapshot.step for snapshot in history if np.isinf(snapshot.input_rms)]
    # A recurrent cell gets a state at each call, which a bad batch spoils for good.
    if bad and bad[0] > evidence.first.step and (len(bad) == 1 or not evidence.first.calls):
        text = f"The batch at step {bad[0]} contains NaN or Inf; earlier measured ones did not."
        return Claim(text, broken + spikes, "input")
    for spike in spikes:
        past = evidence.losses_before(spike.step - BEFORE_SPIKE)
        if _is_calm(past, spike) or _is_peak(evidence, spike):
            text = (
                f"{spike.layers[0]} jumped to {spike.value:.3g} at step {spike.step} (limit {spike.threshold:.3g}); "
                f"the losses before it had a median of {_median(past[-WINDOW:]):.3g}, those after it of "
                f"{_median(evidence.losses_after(spike.step)):.3g}."
            )
            return Claim(text, spikes + broken, "spike")
    if not broken or broken[0].case == "weights" or bad or _was_ordinary(evidence, broken[0].step):
        return None
    if not is_rising(evidence.losses_before(broken[0].step)):
        text = f"The loss was calm until step {broken[0].step}, and is NaN or Inf from there on."
        return Claim(text, broken + spikes, "nonfinite")
    return None


def _was_ordinary(evidence: Evidence, step: int) -> bool:
    """Return True if the input of a step is known, and not larger than that of others."""
    sizes = {snapshot.step: snapshot.input_rms for snapshot in evidence.history}
    others = [size for other, size in sizes.items() if other < step and np.isfinite(size)]
    return bool(len(others) > 0 and sizes.get(step, np.nan) < ORDINARY * max(others))


def _is_calm(past: Array, spike: Finding) -> bool:
    """Return True if the losses before a spike neither rise nor come near it."""
    if len(past) <= FEW or is_rising(past):
        return False
    return spike.layers[0] != "loss" or bool(np.max(past[-WINDOW:]) < spike.value / CALM)


def _is_peak(evidence: Evidence, spike: Finding) -> bool:
    """Return True if the losses on both sides are small: one batch of many odd ones, not a run that goes wrong."""
    before, after = evidence.losses_before(spike.step)[-SIDE:-1], evidence.losses_after(spike.step)[1:SIDE]
    return all(len(side) > FEW and float(np.median(side)) < spike.value / PEAK for side in (before, after))


def _median(row: Array) -> float:
    return float(np.median(row)) if len(row) else float("nan")
