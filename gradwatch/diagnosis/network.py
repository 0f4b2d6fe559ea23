"""Causes in the network: activations, units that are off, depth, weights and recurrence."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.data import LARGE_INPUT
from gradwatch.diagnosis.evidence import (
    EARLY,
    Evidence,
    activation_gain,
    gains_and_share_in_words,
    gains_in_words,
    hidden_weight_gains,
    share_at_first_layer,
    weights_gain,
)
from gradwatch.diagnosis.norms import small_norms
from gradwatch.diagnosis.numerics import is_overflow
from gradwatch.diagnosis.optimization import LARGE_UPDATE
from gradwatch.diagnosis.parts import zeros_times_zeros
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.layer_kinds import is_gated_recurrent, is_rectifier
from gradwatch.paths import main_path
from gradwatch.progress import DOES_WELL
from gradwatch.records import Finding, Snapshot

NEARLY_LOSSLESS = 0.9  # gain of an activation that is not to blame; a ReLU has 0.71, a Tanh at zero 1
MOSTLY = 0.5  # more than this share of units or parameters makes it a matter of the whole
# Neither weights nor activations of such gains are out of the ordinary: torch's own weights have 0.58.
ORDINARY_WEIGHTS, ORDINARY_ACTIVATION = 0.45, 0.5
# A first cross-entropy of so many times ln C, and so much above it. Logits of variance s^2 have about ln C + s^2 / 2;
# the first loss of a network that knows nothing should be ln C (A. Karpathy, Neural networks: zero to hero, 2022).
SURPRISE, ABOVE = 3.0, 5.0


@rule("saturating activation", {"lossy": 0.9, "flat": 0.6})
def saturating_activation(evidence: Evidence) -> Claim | None:
    """A bounded activation takes a larger share of the gradient, at each layer, than the weights do.

    A Sigmoid's slope is at most 1/4. A Tanh's is 1 at zero: it takes much only where it is driven into its flat part.
    """
    faded, flat = evidence.faded_early, evidence.found("saturated")
    if not (faded or flat):
        return None
    snapshot = evidence.nearest(min(finding.step for finding in faded + flat))
    activation, weights = activation_gain(snapshot), weights_gain(snapshot)
    if faded and activation < min(1.0 if np.isnan(weights) else weights, NEARLY_LOSSLESS):
        return Claim(gains_and_share_in_words(snapshot), faded + flat, "lossy")
    if flat:
        share = max(finding.value for finding in flat)
        text = f"{share:.0%} of a layer's outputs lie where the activation is flat. {gains_in_words(snapshot)}"
        return Claim(text, flat + faded, "flat")
    return None


@rule("dead ReLU", {"from the start": 0.8, "in training": 0.6, "whole layer": 0.9})
def dead_relu(evidence: Evidence) -> Claim | None:
    """Rectifiers that fire for no sample: from the start, or since a step that was too large."""
    dead = evidence.found("dead")
    if not dead:
        return _whole_layer_off(evidence)
    first = min(finding.step for finding in dead)
    if first < EARLY and evidence.dead_at_start > MOSTLY:
        text = f"{evidence.dead_at_start:.0%} of the first ReLUs fire for no sample in the first steps already."
        return Claim(text, dead, "from the start")
    if evidence.loss_fall > DOES_WELL:  # a sparse network that learns
        return None
    worst = max(finding.value for finding in dead)
    return Claim(f"{worst:.0%} of a layer's ReLUs fire for no sample, by step {first}.", dead, "in training")


def _whole_layer_off(evidence: Evidence) -> Claim | None:
    """Look for a layer with too few units for the dead-unit detector, all of which are off."""
    for finding in evidence.found("vanishing"):
        snapshot = evidence.nearest(finding.step)
        off = [i for i in np.flatnonzero(snapshot.gain == 0) if is_rectifier(snapshot.kinds[i])]
        if off and finding.value == 0:
            layer = f"{snapshot.kinds[off[-1]]} {snapshot.layers[off[-1]]}"
            return Claim(f"{layer} fires for no sample: the gradient ends there.", (finding,), "whole layer")
    return None


@rule("missing normalization or skip", {"": 0.7, "normalized": 0.5}, from_start=True)
def missing_normalization_or_skip(evidence: Evidence) -> Claim | None:
    """The gradient fades over depth though neither weights nor activations are out of the ordinary."""
    first, faded = evidence.first, evidence.faded_early or _fades_from_start(evidence)
    if not faded or weights_gain(first) < ORDINARY_WEIGHTS or activation_gain(first) < ORDINARY_ACTIVATION:
        return None
    text = f"{gains_and_share_in_words(first)} No single layer is to blame: the depth is."
    return Claim(text, faded, "normalized" if evidence.normalizes else "")


def _fades_from_start(evidence: Evidence) -> tuple[Finding, ...]:
    """Return what vanishes in the first steps of a run that is stuck, and was faint at its first step already."""
    if not evidence.is_stuck() or not share_at_first_layer(evidence.first) < LITTLE_AT_FIRST:
        return ()
    soon = (finding for finding in evidence.found("vanishing") if finding.step < EARLY)
    return tuple(finding for finding in soon if not evidence.is_over_calls(finding))


# Gain of the weights alone: torch's own have 0.58, He's 1.41; 1 to 1.41 keeps the gradient's size.
SMALL, LARGE = 0.5, 1.75
SMALLISH = 0.75
LITTLE_IN_ALL = 0.01  # through all hidden layers; one or two with torch's own weights leave more, however narrow
LITTLE_AT_FIRST = 0.1  # of the largest gradient, at the first layer: heads beside one another multiply nothing
HARDLY_FALLS = 0.05  # share of the loss
SIGNAL_GROWTH = 100.0  # of the output's RMS, from the first layer to the last


@rule("initialization too small", {"zeros": 0.92, "norms": 0.92, "small": 0.85, "smallish": 0.55}, from_start=True)
def initialization_too_small(evidence: Evidence) -> Claim | None:
    """The weights alone shrink the signal or the gradient at each layer, more than the activations do."""
    return zeros_times_zeros(evidence) or small_norms(evidence) or _small_weights(evidence)


def _small_weights(evidence: Evidence) -> Claim | None:
    first, faded = evidence.first, evidence.faded_early
    weights = weights_gain(first)
    tiny = weights < SMALL / 2 and float(np.prod(hidden_weight_gains(first))) < LITTLE_IN_ALL
    stuck = tiny and share_at_first_layer(first) < LITTLE_AT_FIRST and evidence.is_stuck(HARDLY_FALLS)
    shrinks = (faded and weights < SMALLISH) or (stuck and not evidence.normalizes)
    if not shrinks or activation_gain(first) < weights or evidence.dead_at_start > MOSTLY:
        return None
    about = faded + evidence.found("stalled")
    return Claim(gains_and_share_in_words(first), about, "small" if weights < SMALL else "smallish")


@rule("initialization too large", 0.85, from_start=True)
def initialization_too_large(evidence: Evidence) -> Claim | None:
    """The weights alone blow up the signal and the gradient at each layer."""
    early = (f for f in evidence.found("exploding", "saturated", "nonfinite", "dead") if f.step < 2 * EARLY)
    about = tuple(finding for finding in early if not evidence.is_over_calls(finding))
    growth = signal_growth(evidence.first)
    harms = about or (growth > SIGNAL_GROWTH and evidence.is_stuck())
    if evidence.normalizes or not weights_gain(evidence.first) > LARGE or not harms:
        return None
    text = f"{gains_in_words(evidence.first)} The last layer's output is {growth:.2g} times the first's."
    return Claim(text, about)


@rule("initialization too large", {"overflow": 0.7}, from_start=True)
def first_overflow(evidence: Evidence) -> Claim | None:
    """Numbers overflow in the very first forward pass, in a sum or a product, though the input is of ordinary size."""
    about = tuple(f for f in evidence.found("nonfinite") if f.step == 0 and is_overflow(f))
    if not about or evidence.first.input_rms > LARGE_INPUT:
        return None
    return Claim(f"Before any step was made: {about[0].message}", about, "overflow")


@rule("initialization too large", {"logits": 0.75}, from_start=True)
def large_first_loss(evidence: Evidence) -> Claim | None:
    """The loss of the first step is far above that of a network that knows nothing, and something came of it."""
    first = evidence.first
    if not (first.step == 0 and first.classes > 1) or not first.input_rms <= LARGE_INPUT:
        return None
    even = float(np.log(first.classes))
    early = tuple(f for f in evidence.found("exploding", "spike", "saturated") if f.step < 2 * EARLY)
    about = early + evidence.found("not-learning")
    # Without a finding nothing is said: such a loss comes down by itself, if slowly at a small rate.
    if not max(SURPRISE * even, even + ABOVE) < first.loss < np.inf or not about:
        return None
    text = (
        f"The first loss is {first.loss:.3g}; equal logits of {first.classes:.0f} classes would have "
        f"ln {first.classes:.0f} = {even:.3g}. {evidence.loss_in_words}"
    )
    return Claim(text, about, "logits")


def signal_growth(snapshot: Snapshot) -> float:
    """Return the RMS of the last layer's output over that of the first's, on one path; 1 where it is unknown."""
    path = main_path(snapshot)
    sizes, gains = snapshot.output_rms[path], snapshot.weight_gain[path]
    known = sizes[~np.isnan(gains) & np.isfinite(sizes)]
    return float(known[-1] / known[0]) if len(known) > 1 and known[0] > 0 else 1.0


MIN_CALLS = 4
GROWTH_OVER_CALLS = 30.0  # at the first step, before growth could last
SOON = 20  # steps
FALLS_LITTLE = 0.3  # share of the loss
GRADIENT_TO_WEIGHT = 10.0  # usual: well below 1


@rule(
    "recurrent depth", {"fades": 0.9, "gated fades": 0.9, "grows": 0.9, "later": 0.6, "overflows": 0.8, "hidden": 0.7}
)
def recurrent_depth(evidence: Evidence) -> Claim | None:
    """The gradient of a layer that runs several times a step fades, or grows, from its last call to its first."""
    about = tuple(f for f in evidence.found("vanishing", "exploding") if evidence.is_over_calls(f))
    if not about:
        return _overflowing(evidence) or _hidden_in_one_call(evidence)
    finding = about[0]
    snapshot = evidence.nearest(finding.step)
    layer = next((name for name in finding.layers if name in snapshot.calls), None)
    if layer is None:
        return None
    calls, kind = snapshot.calls[layer], snapshot.kinds[snapshot.layers.index(layer)]
    fades = finding.kind == "vanishing"
    if not fades and calls[0] <= calls[-1]:
        return None  # large at all of them: the depth or the rate made it so
    text = (
        f"Over {snapshot.calls_as_text(layer)} of {kind} {layer} the gradient {'falls' if fades else 'grows'} from "
        f"{calls[-1]:.1e} at the last to {calls[0]:.1e} at the first."
    )
    case = "grows" if not fades else "gated fades" if is_gated_recurrent(kind) else "fades"
    started_well = finding.step >= EARLY and evidence.first_updates > LARGE_UPDATE
    return Claim(text, about, case, "later" if started_well else None)


def _overflowing(evidence: Evidence) -> Claim | None:
    """Look for numbers that overflow in the first steps, before growth over the calls could last."""
    about = tuple(finding for finding in evidence.found("nonfinite", "exploding") if finding.step < EARLY)
    for layer, calls in evidence.first.recurrent_calls() if about else ():
        rise = calls[0] / calls[-1] if len(calls) > MIN_CALLS and 0 < calls[-1] < np.inf else 0.0
        if rise > GROWTH_OVER_CALLS:
            span = evidence.first.calls_as_text(layer)
            text = f"At the first step the gradient of {layer} grew {rise:.1e} times over its {span}."
            return Claim(text, about, "grows", "overflows")
    return None


def _hidden_in_one_call(evidence: Evidence) -> Claim | None:
    """Look at torch's own recurrent networks, which hide their steps: only the gradient of their weights tells."""
    first = evidence.first
    about = tuple(finding for finding in evidence.found("exploding", "nonfinite") if finding.step < SOON)
    ratios = np.nan_to_num(first.grad_to_weight_ratio, nan=0.0, posinf=np.inf)
    if not about or not len(ratios) or not evidence.is_stuck(FALLS_LITTLE):
        return None
    worst = int(np.argmax(ratios))
    if not first.takes_steps(first.layers[worst]) or not ratios[worst] > GRADIENT_TO_WEIGHT:
        return None
    text = f"The gradient of {first.kinds[worst]} {first.layers[worst]} is {ratios[worst]:.1e} times its weights."
    return Claim(text, about, "grows", "hidden")
