"""Causes in the weights that the training began with."""

from __future__ import annotations

import numpy as np

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
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.records import Snapshot

# Gain of the weights alone: torch's own have 0.58, He's 1.41; 1 to 1.41 keeps the gradient's size.
SMALL, LARGE = 0.5, 1.75
SMALLISH = 0.75
LITTLE_IN_ALL = 0.01  # through all hidden layers; one or two with torch's own weights leave more, however narrow
LITTLE_AT_FIRST = 0.1  # of the largest gradient, at the first layer: heads beside one another multiply nothing
MOSTLY_DEAD = 0.5
STUCK = 0.05  # share of the loss
SIGNAL_GROWTH = 100.0  # of the output's RMS, from the first layer to the last


@rule("initialization too small", {"small": 0.85, "smallish": 0.55}, from_start=True)
def too_small(evidence: Evidence) -> Claim | None:
    """The weights alone shrink the gradient at each layer, more than the activations do."""
    first, faded = evidence.first, evidence.faded_early
    if evidence.dead_at_start > MOSTLY_DEAD:
        return None
    weights = weights_gain(first)
    tiny = weights < SMALL / 2 and float(np.prod(hidden_weight_gains(first))) < LITTLE_IN_ALL
    stuck = tiny and share_at_first_layer(first) < LITTLE_AT_FIRST and evidence.is_stuck(STUCK)
    shrinks = (faded and weights < SMALLISH) or (stuck and not evidence.normalizes)
    if not shrinks or activation_gain(first) < weights:
        return None
    about = faded + evidence.found("stalled")
    return Claim(gains_and_share_in_words(first), about, "small" if weights < SMALL else "smallish")


@rule("initialization too large", 0.85, from_start=True)
def too_large(evidence: Evidence) -> Claim | None:
    """The weights alone blow up the signal and the gradient at each layer."""
    if evidence.normalizes:
        return None
    early = (f for f in evidence.found("exploding", "saturated", "nonfinite", "dead") if f.step < 2 * EARLY)
    about = tuple(finding for finding in early if not evidence.is_over_calls(finding))
    growth = signal_growth(evidence.first)
    harms = about or (growth > SIGNAL_GROWTH and evidence.is_stuck())
    if not weights_gain(evidence.first) > LARGE or not harms:
        return None
    text = f"{gains_in_words(evidence.first)} The last layer's output is {growth:.2g} times the first's."
    return Claim(text, about)


def signal_growth(snapshot: Snapshot) -> float:
    """Return the RMS of the last layer's output over that of the first's; 1 where it is unknown."""
    known = snapshot.output_rms[~np.isnan(snapshot.weight_gain) & np.isfinite(snapshot.output_rms)]
    return float(known[-1] / known[0]) if len(known) > 1 and known[0] > 0 else 1.0
