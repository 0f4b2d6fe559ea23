"""Causes in the steps that are taken: too large, too large too soon, or clipped to nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import EARLY, before, beginning, fallen, found, has, is_stuck, losses, told
from gradwatch.layer_kinds import is_attention, is_layer_norm
from gradwatch.records import Diagnosis, Finding, Snapshot

LARGE_STEP = 0.1  # of the weights, in one step; 1e-3 is what is usual
_LATE = 50  # steps, by which a rate that is too high for a run's first steps has shown itself
_HUGE_STEP = 1.0
_USUAL_STEP = 1e-3
_GROWN = 30.0  # OneCycleLR's peak is 25 times its start


def learning_rate_too_high(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The first steps are a large share of the weights, and the loss rises, or units die, or numbers overflow."""
    step = first_steps(history)
    harm = _harm(findings, history)
    about = found(findings, "nonfinite", "exploding", "dead", "saturated", "spike", "vanishing", "stalled")
    about = tuple(f for f in about if f.step > 0 or f.kind in ("exploding", "nonfinite"))
    if not history or not harm or not (step > LARGE_STEP or "the loss rose" in harm):
        return None
    if not about and not (step > 3 * LARGE_STEP and is_stuck(history, 0.03)):
        return None  # a loss may rise for its own reasons: adversaries, single samples, noise
    grown = _growth_of_rate(history)
    score = 0.9 if grown > _GROWN else _score(step, about, history)
    size = f"The first steps are {step:.2g} of the weights (usual: 0.001)" if step == step else "The steps are large"
    rate = f" at a learning rate of {history[0].learning_rate:.3g}" if history[0].learning_rate > 0 else ""
    rose = f" The rate has grown {grown:.2g} times." if grown > _GROWN else ""
    evidence = f"{size}{rate}, and {harm}.{rose} {told(history)}".strip()
    remedies = ("a lower learning rate", "warm-up", "clip by the global norm")
    return Diagnosis("learning rate too high", evidence, score, about, remedies)


def _score(step: float, about: Sequence[Finding], history: Sequence[Snapshot]) -> float:
    came_late = bool(about) and min(f.step for f in about) > _LATE and _had_fallen(history, min(f.step for f in about))
    if came_late or not step > LARGE_STEP:
        return 0.5
    if step < _HUGE_STEP:  # numbers may overflow out of a training that goes well
        return 0.5 if _fell_until(history, about) else 0.75
    return 0.85


def _growth_of_rate(history: Sequence[Snapshot]) -> float:
    """The largest rate over the first; 1 where the first was too small to matter, as in a warm-up."""
    rates = [s.learning_rate for s in history if s.learning_rate > 0]
    return max(rates) / rates[0] if rates and first_steps(history) > _USUAL_STEP else 1.0


def _fell_until(history: Sequence[Snapshot], about: Sequence[Finding]) -> bool:
    """Whether the loss was coming down until NaN or Inf appeared."""
    broken = found(about, "nonfinite")
    past = before(history, broken[0].step) if broken else np.empty(0)
    return len(past) > 1 and float(past[-1]) < 0.9 * float(past[0]) and float(past.max()) < 1.5 * float(past[0])


def _is_of_transformer(kind: str) -> bool:
    return is_attention(kind) or is_layer_norm(kind)


def missing_warm_up(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """Adam on attention and normalization layers takes full steps at once, and the loss does not come down."""
    first, step = beginning(history), first_steps(history)
    is_adam = first is not None and first.optimizer.startswith(("Adam", "NAdam"))
    if first is None or not is_adam or not has(first, _is_of_transformer):
        return None
    rates = [s.learning_rate for s in history]
    harmed = (_rose(history) > 1.2 and not fallen(history) > 0.5) or (
        len(losses(history)) >= _LATE and is_stuck(history, 0.2)  # a language model takes more than a few steps
    )
    if not (harmed and step > LARGE_STEP / 3 and rates[0] >= 0.9 * max(rates)):
        return None
    evidence = (
        f"{first.optimizer} starts at its full learning rate of {rates[0]:.3g}: {step:.2g} of the weights in a step. "
        f"{told(history)}"
    )
    score = 0.7 if step > _HUGE_STEP else 0.8
    about = found(findings, "spike", "vanishing", "stalled", "dead", "exploding")
    return Diagnosis(
        "missing warm-up", evidence, score, about, ("warm-up over the first steps", "a lower learning rate", "pre-norm")
    )


def clipping_too_hard(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """Nearly all of the gradient is clipped away in most steps, and the loss hardly falls."""
    kept = np.array([s.clip_coefficient for s in history if np.isfinite(s.clip_coefficient)])
    if len(kept) < EARLY or not np.median(kept) < 0.05 or not fallen(history) < 0.3:
        return None
    evidence = f"Clipping leaves {np.median(kept):.2g} of the gradient in the median step. {told(history)}"
    remedies = ("clip at the 90th percentile of the norms", "clip less", "a higher learning rate")
    return Diagnosis("clipping too hard", evidence, 0.85, found(findings, "vanishing"), remedies)


def first_steps(history: Sequence[Snapshot]) -> float:
    """Median over the layers of the largest of the first steps, as a share of the weights; NaN if unknown."""
    rows = [s.step_to_weight for s in history if s.step < EARLY]
    if not rows or len({len(row) for row in rows}) > 1:
        return float("nan")
    known = np.array(rows)[:, ~np.isnan(rows[0])]
    known = known[np.isfinite(known).all(axis=1)]
    return float(np.max(np.median(known, axis=1))) if known.size else float("nan")


def _rose(history: Sequence[Snapshot], *, finite: bool = False) -> float:
    """The largest loss of the run, or the largest finite one, over the first."""
    row = losses(history)
    row = row[np.isfinite(row)] if finite else row
    if len(row) < 2 or not row[0] > 0:
        return 1.0
    return float(np.max(row[1:]) / row[0])


def _had_fallen(history: Sequence[Snapshot], step: int) -> bool:
    past = before(history, step - 3)
    return len(past) > EARLY and float(np.median(past[-5:])) < 0.5 * float(past[0])


def _harm(findings: Sequence[Finding], history: Sequence[Snapshot]) -> str:
    if _rose(history, finite=True) > 3 and is_stuck(history, 0.0):
        return "the loss rose"
    if any(f.kind == "dead" and f.step >= 1 for f in findings):
        return "ReLUs died in training"
    if any(f.kind in ("nonfinite", "exploding") for f in findings) and (_rose(history, finite=True) > 3):
        return "numbers overflow"
    if _rose(history) > 1.5 and is_stuck(history, 0.3):
        return "the loss rose from its start and hardly came down"
    if first_steps(history) > _HUGE_STEP and is_stuck(history, 0.3):
        return "the loss hardly falls"
    return "the loss does not fall" if is_stuck(history, 0.1) else ""


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
