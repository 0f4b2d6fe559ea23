"""Causes in the network: activations, units that are off, depth, weights, recurrence, heads and parts cut off."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.data import LARGE_INPUT
from gradwatch.diagnosis.evidence import (
    EARLY,
    LEARNS,
    Evidence,
    activation_gain,
    gains_and_share_in_words,
    gains_in_words,
    hidden_weight_gains,
    share_at_first_layer,
    weights_gain,
)
from gradwatch.diagnosis.norms import norm_over_one_unit, small_norms
from gradwatch.diagnosis.numerics import is_overflow
from gradwatch.diagnosis.optimization import LARGE_UPDATE
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.layer_kinds import is_gated_recurrent, is_normalization, is_rectifier
from gradwatch.paths import main_path
from gradwatch.records import Finding, Snapshot

NEARLY_LOSSLESS = 0.9  # gain of an activation that is not to blame; a ReLU has 0.71, a Tanh at zero 1
MOSTLY = 0.5  # more than this share of units or parameters makes it a matter of the whole
NEARLY_ALL = 0.9
# Neither weights nor activations of such gains are out of the ordinary: torch's own weights have 0.58.
ORDINARY_WEIGHTS, ORDINARY_ACTIVATION = 0.45, 0.5
LATER = 4  # Snapshots after the first: a branch that starts at zero (ReZero) has a gradient a step later
# A cross-entropy over C classes starts near ln C: of 2 classes 0.69, of 100,000 classes 11.5.
CLASSES_LOSS = (0.6, 12.0)
# A first cross-entropy of so many times ln C, and so much above it. Logits of variance s^2 have about ln C + s^2 / 2;
# the first loss of a network that knows nothing should be ln C (A. Karpathy, Neural networks: zero to hero, 2022).
SURPRISE, ABOVE = 3.0, 5.0
# A second softmax bounds the gradient at its input: norm times sqrt(batch) is 1 for equal outputs.
BOUNDED_GRADIENT = (0.5, 1.3)
ENOUGH = 20  # losses, after which biases alone would have shown that they suffice
FLOOR_TOLERANCE = 0.1  # of the loss, below the floor that the second softmax sets: noise of single batches


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
    if evidence.loss_fall > LEARNS:  # a sparse network that learns
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
    first, faded = evidence.first, evidence.faded_early
    if not faded or weights_gain(first) < ORDINARY_WEIGHTS or activation_gain(first) < ORDINARY_ACTIVATION:
        return None
    text = f"{gains_and_share_in_words(first)} No single layer is to blame: the depth is."
    return Claim(text, faded, "normalized" if evidence.normalizes else "")


@rule("zero-gradient head", {"no gradient": 0.9, "norm of one unit": 0.93, "probabilities": 0.85}, from_start=True)
def zero_gradient_head(evidence: Evidence) -> Claim | None:
    """The head passes no gradient at all, or one that a second softmax bounds."""
    return _no_gradient(evidence) or _softmax_twice(evidence)


def _no_gradient(evidence: Evidence) -> Claim | None:
    first = evidence.first
    norms, later = first.param_grad_norm, evidence.history[: LATER + 1][-1].param_grad_norm
    if len(later) != len(norms) or not len(norms):
        return None
    zeros = (norms == 0) & (later == 0)
    norm = norm_over_one_unit(first)
    if _passes_some(first) and not norm:  # the head does; what is cut off, or beside it, has causes of its own
        return None
    units_are_off = evidence.dead_at_start > NEARLY_ALL and not (first.weight_norm == 0).any()
    if zeros.mean() < MOSTLY or units_are_off or first.dtype == "float16":  # these have causes of their own
        return None
    about = evidence.found("stalled", "vanishing")
    count = f"{int(zeros.sum())} of {len(norms)} parameters had a gradient of exactly zero at first"
    if norm:
        text = f"{count}; {norm} is over a single unit: its output is its bias, whatever comes in."
        return Claim(f"{text} {evidence.loss_in_words}", about, "norm of one unit")
    last = first.kinds[-1] if first.kinds else ""
    return Claim(f"{count}; the last layer is a {last}. {evidence.loss_in_words}", about, "no gradient")


def _passes_some(snapshot: Snapshot) -> bool:
    """Return True if a weight has a gradient, or most layers have one at their output."""
    at_outputs = snapshot.grad_output_norm[np.isfinite(snapshot.grad_output_norm)]
    if len(at_outputs) and np.median(at_outputs) > 0:
        return True
    norms = zip(snapshot.params, snapshot.param_grad_norm, strict=True)
    return any(norm > 0 and not name.endswith("bias") for name, norm in norms)


def _softmax_twice(evidence: Evidence) -> Claim | None:
    """Recognize a cross-entropy of probabilities: over C classes it starts at ln C, with a gradient that is bounded."""
    first, losses = evidence.first, evidence.losses
    low, high = CLASSES_LOSS
    if not first.kinds or first.kinds[-1] != "Softmax" or not len(losses) or not low < losses[0] < high:
        return None
    norm, rms = first.grad_output_norm[-1], first.grad_output_rms[-1]
    classes = float(np.exp(losses[0]))
    batch = (norm / rms) ** 2 / classes  # (norm / rms)^2 is the number of entries: batch times classes
    floor = losses[0] - 1  # with probability 1 for the right class the second softmax still costs about ln C - 1
    low, high = BOUNDED_GRADIENT
    if not low < norm * np.sqrt(batch) < high or not np.min(losses) > floor - FLOOR_TOLERANCE:
        return None
    text = (
        f"The network ends in a Softmax, and its loss begins at {losses[0]:.3g}, as a cross-entropy of {classes:.0f} "
        f"classes does, with the bounded gradient of a second softmax: it can't fall below about {max(floor, 0):.2g}."
    )
    return Claim(text, evidence.found("stalled", "vanishing", "saturated"), "probabilities")


@rule(
    "frozen or detached part", {"unused": 0.6, "no optimizer": 0.9, "no gradient": 0.9, "cut off": 0.88, "frozen": 0.6}
)
def frozen_or_detached_part(evidence: Evidence) -> Claim | None:
    """Parameters of the optimizer have no gradient, or parameters with a gradient belong to no optimizer."""
    return _beside_optimizer_or_loss(evidence) or _all_weights_frozen(evidence)


def _all_weights_frozen(evidence: Evidence) -> Claim | None:
    """Look for a network of which only biases learn, and that does not learn: a filter on names went wrong."""
    last = evidence.last
    norms = tuple(f"{n}." for n, kind in zip(last.layers, last.kinds, strict=True) if is_normalization(kind))
    are_small = bool(last.params) and all(name.endswith("bias") or name.startswith(norms) for name in last.params)
    if not are_small or not last.frozen_size > last.param_size.sum():
        return None
    if not (evidence.is_stuck() or evidence.is_at_chance):
        return None
    text = (
        f"{last.frozen_size:.0f} entries of the parameters are frozen, all weights among them; only "
        f"{', '.join(last.params[:3])}{' and so on' if len(last.params) > 3 else ''} learn. {evidence.loss_in_words}"
    )
    return Claim(text, (), "frozen") if len(evidence.losses) >= ENOUGH else None


def _beside_optimizer_or_loss(evidence: Evidence) -> Claim | None:
    stalled, last = evidence.found("stalled"), evidence.last
    about = stalled + evidence.found("unmoved")
    forgotten = tuple(finding for finding in about if finding.case == "no optimizer")
    if forgotten:
        names = forgotten[0].layers
        some = ", ".join(names[:3])
        text = f"{len(names)} parameters should learn and belong to no optimizer that steps, among them {some}."
        return Claim(text, forgotten, "no optimizer")
    if not stalled:
        return None
    unused = tuple(finding for finding in stalled if finding.case == "unused")
    if unused and len(unused) == len(stalled):
        if _all_zero(last):
            return None
        return Claim(
            f"{unused[0].message[0].upper()}{unused[0].message[1:]} {evidence.loss_in_words}", unused, "unused"
        )
    named = {name for finding in stalled for name in finding.layers}
    unreached = [name for name in evidence.params_never_reached if name in named]
    if not unreached:
        return _cut_off(evidence, stalled) or _times_frozen_zeros(evidence, stalled)
    some = ", ".join(unreached[:3])
    text = f"The .grad of {len(unreached)} of {len(last.params)} parameters is None, among them {some}."
    return Claim(text, stalled, "no gradient")


def _cut_off(evidence: Evidence, stalled: tuple[Finding, ...]) -> Claim | None:
    """Look for a place before which all gradients are exactly zero, and none after: something rounds, or cuts."""
    norms = evidence.last.param_grad_norm
    zeros = np.flatnonzero(norms == 0)
    dead = np.nan_to_num(evidence.last.dead_fraction, nan=0.0).max(initial=0.0)
    if not 0 < len(zeros) < len(norms) or dead > NEARLY_ALL or zeros[-1] != len(zeros) - 1:
        return None
    if not norms[len(zeros)] > FADED * np.nanmax(norms):  # it came down to zero step by step
        return None
    text = f"The gradient of the first {len(zeros)} of {len(norms)} parameters is exactly zero; of the rest it is not."
    return Claim(text, stalled, "cut off")


def _times_frozen_zeros(evidence: Evidence, stalled: tuple[Finding, ...]) -> Claim | None:
    """Look for gradients that are all zero, though layers have one at their outputs: frozen weights of zero cut it."""
    last = evidence.last
    if not last.frozen_size > 0 or (last.param_grad_norm != 0).any() or not _passes_some(last) or _all_zero(last):
        return None
    text = (
        f"The gradient of all {len(last.params)} parameters is exactly zero, though gradients reach the layers: what "
        f"they are multiplied with is zero, and frozen. {evidence.loss_in_words}"
    )
    return Claim(text, stalled, "frozen")


def _all_zero(snapshot: Snapshot) -> bool:
    return bool(len(snapshot.params)) and bool((snapshot.param_weight_norm == 0).all())


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
    return _zeros_times_zeros(evidence) or small_norms(evidence) or _small_weights(evidence)


def _zeros_times_zeros(evidence: Evidence) -> Claim | None:
    """Look for weights that start at zero and are multiplied with each other, so that none can leave it."""
    last = evidence.last
    stalled = evidence.found("stalled")
    if not stalled or not _all_zero(last) or (last.param_grad_norm != 0).any() or not _passes_some(last):
        return None
    text = (
        f"All {len(last.params)} parameters that should learn, {last.params[0]} and so on, are zero and have a "
        f"gradient of zero: each is multiplied with another that is zero. {evidence.loss_in_words}"
    )
    return Claim(text, stalled, "zeros")


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
FADED = 1e-20  # of the largest gradient: float32 holds 1e-45, so a gradient that fades layer by layer passes here
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
    for layer, calls in evidence.first.calls.items() if about else ():
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
