"""Causes in parts that get no gradient: a head that passes none, parts cut off, frozen, or beside the loss."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.evidence import Evidence
from gradwatch.diagnosis.norms import norm_over_one_unit
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.records import Finding, Snapshot

MOSTLY = 0.5  # more than this share of the parameters makes it a matter of the whole
NEARLY_ALL = 0.9
LATER = 4  # Snapshots after the first: a branch that starts at zero (ReZero) has a gradient a step later
# A cross-entropy over C classes starts near ln C: of 2 classes 0.69, of 100,000 classes 11.5.
CLASSES_LOSS = (0.6, 12.0)
# A second softmax bounds the gradient at its input: norm times sqrt(batch) is 1 for equal outputs.
BOUNDED_GRADIENT = (0.5, 1.3)
FLOOR_TOLERANCE = 0.1  # of the loss, below the floor that the second softmax sets: noise of single batches
ENOUGH = 20  # losses, after which biases alone would have shown that they suffice
FADED = 1e-20  # of the largest gradient: float32 holds 1e-45, so a gradient that fades layer by layer passes here


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


# What a finding says of the parts outright scores highest.
_SCORES = {
    "unused": 0.6, "no optimizer": 0.9, "no gradient": 0.9, "cut off": 0.88, "frozen": 0.6, "all frozen": 0.95,
}  # fmt: skip


@rule("frozen or detached part", _SCORES)
def frozen_or_detached_part(evidence: Evidence) -> Claim | None:
    """Parameters of the optimizer have no gradient, or parameters with a gradient belong to no optimizer."""
    return _beside_optimizer_or_loss(evidence) or _all_weights_frozen(evidence)


def _all_weights_frozen(evidence: Evidence) -> Claim | None:
    """Look for a network of which only biases learn, and that does not learn: a filter on names went wrong."""
    last = evidence.last
    are_biases = bool(last.params) and all(name.endswith("bias") for name in last.params)
    if not are_biases or not last.frozen_size > last.param_size.sum():
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
    frozen = tuple(finding for finding in stalled if finding.case == "frozen")
    if frozen:
        text = frozen[0].message.removeprefix("stalled: ")
        return Claim(f"{text[0].upper()}{text[1:]} {evidence.loss_in_words}", frozen, "all frozen")
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


def zeros_times_zeros(evidence: Evidence) -> Claim | None:
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
