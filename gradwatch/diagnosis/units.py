"""Rules for units that do not react."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.diagnosis.run import EARLY, Run
from gradwatch.records import Diagnosis


def dead(run: Run) -> Iterator[Diagnosis]:
    """ReLUs whose units fire for no sample: from the start, or since some step."""
    found = run.of("dead")
    if not found:
        return
    known = [snapshot for snapshot in run.early if np.isfinite(snapshot.dead_fraction).any()]
    share = float(np.nanmax(known[0].dead_fraction)) if known else 0.0
    from_start = share > found[0].threshold and known[0].step < run.first.step + EARLY // 4
    since = "at the first step already" if from_start else f"by step {found[0].step}"
    evidence = f"{max(found[0].value, share):.0%} of the units of {found[0].layers[0]} were dead {since}."
    remedies = ("He initialization with zero biases", "LeakyReLU", "a normalization layer")
    if not from_start:
        remedies = ("a lower learning rate", "LeakyReLU", "clip by the global norm")
    score = 0.9 if from_start else 0.8
    if run.of("vanishing") and from_start:  # where little arrives, the biases alone say who fires: a consequence
        score = 0.65
    yield Diagnosis("dead ReLU", evidence, score, found, remedies)


def saturated(run: Run) -> Iterator[Diagnosis]:
    """Bounded activations whose outputs lie where they are flat."""
    found = run.of("saturated")
    if found:
        evidence = f"{found[0].value:.0%} of the outputs of {found[0].layers[0]} were flat at step {found[0].step}."
        remedies = ("a normalization layer before it", "Xavier initialization", "scale the inputs")
        yield Diagnosis("saturating activation", evidence, 0.6, found, remedies)
