"""Causes of a loss that can't come down, or does so without end: tiny steps, weights that decay, no lower bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.course import EARLY, beginning, found, is_stuck, losses, told
from gradwatch.records import Diagnosis, Finding, Snapshot

_SMALL_STEP = 1e-6  # of the weights; 1e-3 is what is usual, and what fine-tunes takes 1e-4 and more
_GRADIENT = 1e-4  # of the weights: with less it is the gradient that is small, as in a run that has converged
_DECAYED = 0.1
_ENDLESS = 100.0


def learning_rate_too_low(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """Nearly no step was large enough to change the weights, though the gradient was, and the loss has not fallen."""
    first = beginning(history)
    if first is None or len(losses(history)) < EARLY or not is_stuck(history):
        return None
    rates = np.array([s.learning_rate for s in history])
    steps = [_middle(s.step_to_weight) for s in history[len(history) // 4 :]]  # a schedule may have ended it
    if not all(step < _SMALL_STEP for step in steps) or not rates[-1] > 0 or rates[-1] > 1.5 * rates[0]:
        return None  # a rate that rises is warming up
    gradient = _middle(history[-1].grad_to_weight_ratio)
    if not gradient > _GRADIENT:
        return None
    evidence = (
        f"The gradient is {gradient:.2g} of the weights, and {first.optimizer}'s steps at a learning rate of "
        f"{np.median(rates):.3g} are at most {max(steps):.1e} of them (usual: 0.001). {told(history)}"
    )
    return Diagnosis("learning rate too low", evidence, 0.85, (), ("a higher learning rate",))


def weight_decay_too_strong(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The weights have shrunk to nothing, and the loss does not come down."""
    first = beginning(history)
    if first is None or len(history) < EARLY or not is_stuck(history):
        return None
    left = _middle(history[-1].weight_norm / np.where(first.weight_norm > 0, first.weight_norm, np.nan))
    if not left < _DECAYED:
        return None
    evidence = f"The weights have shrunk to {left:.1g} of what they were in {history[-1].step} steps. {told(history)}"
    about = found(findings, "vanishing", "dead", "stalled")
    return Diagnosis("weight decay too strong", evidence, 0.85, about, ("a weight decay of 0.01 or less",))


def unbounded_loss(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The loss has fallen far below zero, ever faster, until numbers overflow."""
    row = losses(history)
    row = row[np.isfinite(row)]
    about = found(findings, "exploding", "nonfinite", "spike")
    if not about or len(row) < 3 or not row[-1] < -_ENDLESS * max(abs(float(row[0])), 1.0):
        return None
    evidence = f"The loss fell from {row[0]:.3g} to {row[-1]:.3g}, and the numbers grow with it: it has no lower bound."
    return Diagnosis("unbounded loss", evidence, 0.9, about, ("look at the sign of the loss", "a loss with a minimum"))


def _middle(values: object) -> float:
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else float("nan")
