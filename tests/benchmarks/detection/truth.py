"""The verdict on faults and healthy programs: from the outcomes of their runs, never from a detector.

A fault does harm when the score, which is at most 1, is on average 5 points lower than the healthy twin's over the
paired seeds, and lower in most of them; or when most runs diverge while the twin's learn. A healthy program is one
whose score rises by 5 points over its training in every run, without diverging.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from training import Outcome

MARGIN = 0.05

Verdict = Literal["harmed", "harmless", "twin is sick"]


def is_healthy(outcomes: Sequence[Outcome]) -> bool:
    """Return True if the program has learned in every run."""
    return all(outcome.after - outcome.before >= MARGIN and not outcome.diverged for outcome in outcomes)


def verdict(faulty: Sequence[Outcome], twins: Sequence[Outcome]) -> Verdict:
    """Return the verdict on a fault, compared seed by seed."""
    if not is_healthy(twins):
        return "twin is sick"
    if 2 * sum(outcome.diverged for outcome in faulty) > len(faulty):
        return "harmed"
    losses = [twin.after - outcome.after for outcome, twin in zip(faulty, twins, strict=True)]
    most = 2 * sum(loss > 0 for loss in losses) > len(losses)
    return "harmed" if most and sum(losses) / len(losses) >= MARGIN else "harmless"
