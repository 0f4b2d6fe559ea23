"""Causes in the activations: Sigmoids that take most of the gradient, ReLUs that are off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.course import EARLY, dead_share, fallen, found, from_start, nearest, over_calls
from gradwatch.diagnosis.gains import activation_gain, fall_as_text, gains_as_text, weights_gain
from gradwatch.records import Diagnosis, Finding, Snapshot

RECTIFIERS = ("ReLU", "ReLU6", "Threshold")


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
        shut = [i for i in np.flatnonzero(snapshot.gain == 0) if snapshot.kinds[i] in RECTIFIERS]
        if shut and finding.value == 0:
            evidence = (
                f"{snapshot.kinds[shut[-1]]} {snapshot.layers[shut[-1]]} fires for no sample: the gradient ends there."
            )
            return Diagnosis("dead ReLU", evidence, 0.9, (finding,), ("LeakyReLU", "more units", "another seed"))
    return None
