"""Causes in the activations: Sigmoids that take most of the gradient, ReLUs that are off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import (
    EARLY,
    activation_gain,
    beginning,
    dead_share,
    fall_as_text,
    fallen,
    found,
    from_start,
    gains_as_text,
    has,
    losses,
    nearest,
    over_calls,
    told,
    weights_gain,
)
from gradwatch.layer_kinds import is_normalization, is_rectifier
from gradwatch.records import Array, Diagnosis, Finding, Snapshot


def saturating_activation(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """A bounded activation takes a larger share of the gradient, at each layer, than the weights do.

    A Sigmoid's slope is at most 1/4; a Tanh's is 1 at zero, so that it takes much only where it is driven into its
    flat part.
    """
    about = tuple(f for f in from_start(findings, history) if not over_calls(f, history))
    flat = found(findings, "saturated")
    if not history or not (about or flat):
        return None
    snapshot = nearest(history, min(f.step for f in about + flat))
    activation, weights = activation_gain(snapshot), weights_gain(snapshot)
    remedies = ("ReLU with He initialization", "a normalization layer before each activation", "skip connections")
    if about and activation < min(weights if weights == weights else 1.0, 0.9):
        evidence = gains_as_text(snapshot) + fall_as_text(snapshot)
        return Diagnosis("saturating activation", evidence, 0.9, about + flat, remedies)
    if flat:
        share = max(f.value for f in flat)
        evidence = f"{share:.0%} of a layer's outputs lie where the activation is flat. {gains_as_text(snapshot)}"
        return Diagnosis("saturating activation", evidence, 0.6, flat + about, remedies)
    return None


def dead_relu(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """ReLUs that fire for no sample: from the start, or since a step that was too large."""
    dead = found(findings, "dead")
    if not history:
        return None
    if not dead:
        return _shut(findings, history)
    first = min(f.step for f in dead)
    worst = max(f.value for f in dead)
    share = dead_share(history)
    if first < EARLY and share > 0.5:
        evidence = f"{share:.0%} of the first ReLUs fire for no sample in the first steps already."
        remedies = ("He initialization with zero biases", "LeakyReLU", "a normalization layer before each activation")
        return Diagnosis("dead ReLU", evidence, 0.8, dead, remedies)
    if fallen(history) > 0.5:  # a sparse network that learns
        return None
    evidence = f"{worst:.0%} of a layer's ReLUs fire for no sample, by step {first}."
    return Diagnosis("dead ReLU", evidence, 0.6, dead, ("a lower learning rate", "LeakyReLU", "warm-up"))


def _shut(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """A layer of few ReLUs, all of which are off: it passes nothing back."""
    for finding in found(findings, "vanishing"):
        snapshot = nearest(history, finding.step)
        shut = [i for i in np.flatnonzero(snapshot.gain == 0) if is_rectifier(snapshot.kinds[i])]
        if shut and finding.value == 0:
            evidence = (
                f"{snapshot.kinds[shut[-1]]} {snapshot.layers[shut[-1]]} fires for no sample: the gradient ends there."
            )
            return Diagnosis("dead ReLU", evidence, 0.9, (finding,), ("LeakyReLU", "more units", "another seed"))
    return None


def missing_normalization_or_skip(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The gradient fades over depth though neither weights nor activations are out of the ordinary."""
    about = tuple(f for f in from_start(findings, history) if not over_calls(f, history))
    first = beginning(history)
    if not about or first is None:
        return None
    weights, activation = weights_gain(first), activation_gain(first)
    if weights < 0.45 or activation < 0.5:
        return None
    evidence = f"{gains_as_text(first)}{fall_as_text(first)} No single layer is to blame: the depth is."
    score = 0.7 if not has(first, is_normalization) else 0.5
    remedies = ("a normalization layer after each Linear", "skip connections", "He initialization")
    return Diagnosis("missing normalization or skip", evidence, score, about, remedies)


def zero_gradient_head(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The head passes no gradient at all, or one that is bounded by a second softmax."""
    first = beginning(history)
    if first is None:
        return None
    return _no_gradient(findings, first, history) or _softmax_twice(findings, first, history)


def _no_gradient(findings: Sequence[Finding], first: Snapshot, history: Sequence[Snapshot]) -> Diagnosis | None:
    later = np.asarray(history[min(4, len(history) - 1)].param_grad_norm)
    norms = np.asarray(first.param_grad_norm)
    if len(later) != len(norms) or not len(norms):
        return None
    zeros = (norms == 0) & (later == 0)  # a branch that starts at zero (ReZero) has a gradient a step later
    is_off = dead_share(history) > 0.9 and not (first.weight_norm == 0).any()
    if zeros.mean() < 0.5 or is_off or first.dtype == "float16":
        return None
    last = first.kinds[-1] if first.kinds else ""
    evidence = (
        f"{int(zeros.sum())} of {len(norms)} parameters had a gradient of exactly zero at first; the last layer "
        f"is a {last}. {told(history)}"
    )
    remedies = ("no softmax over one unit", "a loss on the raw outputs", "weights that are not all zero")
    return Diagnosis("zero-gradient head", evidence, 0.9, found(findings, "stalled", "vanishing"), remedies)


def _softmax_twice(findings: Sequence[Finding], first: Snapshot, history: Sequence[Snapshot]) -> Diagnosis | None:
    """Cross-entropy of probabilities over C classes starts at ln C; its gradient there is below that of their log."""
    row = losses(history)
    if not first.kinds or first.kinds[-1] != "Softmax" or not len(row) or not 0.6 < row[0] < 12:
        return None
    norm, mean = first.grad_output_norm[-1], first.grad_output_rms[-1]
    classes = float(np.exp(row[0]))
    batch = (norm / mean) ** 2 / classes
    floor = row[0] - 1
    if not 0.5 < norm * np.sqrt(batch) < 1.3 or not np.min(row) > floor - 0.1:
        return None
    evidence = (
        f"The network ends in a Softmax, and its loss begins at {row[0]:.3g}, as a cross-entropy of {classes:.0f} "
        f"classes does, with the bounded gradient of a second softmax: it can't fall below about {max(floor, 0):.2g}."
    )
    remedies = ("remove the Softmax before cross-entropy", "the log of the Softmax with an NLL loss")
    return Diagnosis(
        "zero-gradient head", evidence, 0.85, found(findings, "stalled", "vanishing", "saturated"), remedies
    )


def frozen_or_detached_part(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """Parameters that the optimizer holds have no gradient at all, or such with one stand in no optimizer."""
    stalled = found(findings, "stalled")
    if not stalled or not history:
        return None
    last = history[-1]
    forgotten = tuple(f for f in stalled if set(f.layers) & set(last.left_out))
    if forgotten:
        names = forgotten[0].layers
        evidence = f"{len(names)} parameters have a gradient and no optimizer, among them {', '.join(names[:3])}."
        remedies = ("model.parameters() for the optimizer", "requires_grad_(False) for what should not learn")
        return Diagnosis("frozen or detached part", evidence, 0.9, forgotten, remedies)
    norms = np.asarray(last.param_grad_norm)
    none = never_reached(history)
    if not none:
        return _cut_off(stalled, last, norms)
    evidence = f"The .grad of {len(none)} of {len(norms)} parameters is None, among them {', '.join(none[:3])}."
    remedies = ("remove the detach() or no_grad() before the loss", "use the module, or freeze it")
    return Diagnosis("frozen or detached part", evidence, 0.9, stalled, remedies)


def never_reached(history: Sequence[Snapshot]) -> list[str]:
    """Parameters whose ``.grad`` was None in every Snapshot that lists them; a head used now and then is none."""
    reached = {
        name
        for snapshot in history
        for name, norm in zip(snapshot.params, np.asarray(snapshot.param_grad_norm).tolist(), strict=True)
        if not np.isnan(norm)
    }
    return [name for name in history[-1].params if name not in reached]


def _cut_off(stalled: tuple[Finding, ...], last: Snapshot, norms: Array) -> Diagnosis | None:
    """All before a layer have a gradient of exactly zero, all after it have one: something rounds, or cuts."""
    zeros = np.flatnonzero(norms == 0)
    dead = np.nan_to_num(last.dead_fraction, nan=0.0).max(initial=0.0)
    if not 0 < len(zeros) < len(norms) or dead > 0.9 or zeros[-1] != len(zeros) - 1:
        return None
    evidence = (
        f"The gradient of the first {len(zeros)} of {len(norms)} parameters is exactly zero, of the rest it is not."
    )
    remedies = ("no rounding or comparison between the parts", "freeze what should not learn")
    return Diagnosis("frozen or detached part", evidence, 0.7, stalled, remedies)
