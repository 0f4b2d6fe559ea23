"""Causes in the weights that training began with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import (
    EARLY,
    activation_gain,
    beginning,
    dead_share,
    fall,
    fall_as_text,
    found,
    from_start,
    gains_as_text,
    has,
    is_stuck,
    over_calls,
    weights_gain,
    weights_gain_in_all,
)
from gradwatch.layer_kinds import is_normalization
from gradwatch.records import Diagnosis, Finding, Snapshot

SMALL, LARGE = 0.5, 1.75  # torch's own weights have a gain of 0.58, He's of 1.41; critical is 1 to 1.41
# Of the gradient, through all hidden layers; one or two with torch's own weights leave more, however narrow the head.
_LITTLE = 0.01
_LEFT = 0.1  # of the largest gradient, at the first layer's output: heads beside one another multiply nothing


def initialization_too_small(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The weights alone shrink the gradient at each layer, more than the activations do."""
    first = beginning(history)
    about = tuple(f for f in from_start(findings, history) if not over_calls(f, history))
    if first is None or dead_share(history) > 0.5:
        return None
    weights, activation = weights_gain(first), activation_gain(first)
    faded = weights < SMALL / 2 and weights_gain_in_all(first) < _LITTLE and fall(first) < _LEFT
    stuck = faded and is_stuck(history, 0.05) and not has(first, is_normalization)
    if not ((about and weights < 0.75) or stuck) or activation < weights:
        return None
    score = 0.85 if weights < SMALL else 0.55
    evidence = gains_as_text(first) + fall_as_text(first)
    remedies = ("He initialization for ReLU, Xavier for Tanh", "a normalization layer", "skip connections")
    return Diagnosis("initialization too small", evidence, score, about + found(findings, "stalled"), remedies)


def initialization_too_large(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The weights alone blow up the signal and the gradient at each layer."""
    first = beginning(history)
    if first is None or has(first, is_normalization):
        return None
    weights = weights_gain(first)
    about = tuple(f for f in found(findings, "exploding", "saturated", "nonfinite", "dead") if f.step < 2 * EARLY)
    about = tuple(f for f in about if not over_calls(f, history))
    growth = signal_growth(first)
    if not weights > LARGE or not (about or (growth > 100 and is_stuck(history))):
        return None
    evidence = f"{gains_as_text(first)} The last layer's output is {growth:.2g} times the first's."
    remedies = ("He initialization for ReLU, Xavier for Tanh", "a normalization layer", "clip by the global norm")
    return Diagnosis("initialization too large", evidence, 0.85, about, remedies)


def signal_growth(snapshot: Snapshot) -> float:
    """RMS of the last layer's output over that of the first's; 1 where it is not known."""
    known = snapshot.output_rms[~np.isnan(snapshot.weight_gain) & np.isfinite(snapshot.output_rms)]
    return float(known[-1] / known[0]) if len(known) > 1 and known[0] > 0 else 1.0
