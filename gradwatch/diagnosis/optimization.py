"""Causes in the updates: too large, too large too soon, too small, or clipped or decayed to nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import EARLY, Evidence
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.layer_kinds import is_attention, is_layer_norm
from gradwatch.progress import DOES_WELL
from gradwatch.records import Finding

# Update over weight, of one step: 1e-3 is usual (A. Karpathy, Neural networks: zero to hero, 2022); fine-tunes take
# 1e-4 and more.
USUAL_UPDATE, LARGE_UPDATE, HUGE_UPDATE = 1e-3, 0.1, 1.0
VERY_LARGE_UPDATE = 3 * LARGE_UPDATE  # large without any finding
NOTICEABLE_UPDATE = LARGE_UPDATE / 3  # large for Adam in front of normalization layers
LATE = 50  # steps, by which a rate that is too high for a run's first steps has shown itself
RATE_GROWTH = 30.0  # OneCycleLR's peak is 25 times its start
# Share of the first loss by which a run that is harmed has not fallen: not at all, hardly, and so on.
NO_FALL, HARDLY, A_FIFTH, A_THIRD = 0.0, 0.03, 0.2, 0.3
# The largest loss over the first: higher than noise; clearly higher; far higher.
ROSE_A_LITTLE, ROSE, ROSE_FAR = 1.2, 1.5, 3.0
FELL, HALVED = 0.9, 0.5  # a later loss over the first
RECENT = 5  # losses
BEFORE_FINDING = 3  # steps: the losses just before a finding belong to it
FULL_RATE = 0.9  # of the highest rate, at the first step: nothing warms up
CLIPPED_AWAY = 0.05  # what a clip leaves of the gradient in the median step
DECAYED = 0.1  # of the weights' norm


@rule("learning rate too high", {"rate grew": 0.9, "huge": 0.85, "large": 0.75, "ordinary": 0.5})
def learning_rate_too_high(evidence: Evidence) -> Claim | None:
    """The first updates are a large share of the weights, and the loss rises, or units die, or numbers overflow."""
    update, harm, first = evidence.first_updates, _harm(evidence), evidence.first
    if not harm or not (update > LARGE_UPDATE or harm.startswith(LOSS_ROSE)):
        return None
    kinds = ("nonfinite", "exploding", "dead", "saturated", "spike", "vanishing", "stalled", "not-learning")
    about = tuple(f for f in evidence.found(*kinds) if f.step > 0 or f.kind in ("exploding", "nonfinite"))
    # A loss may rise for its own reasons: adversaries, single samples, noise, a first step. That takes time to tell.
    is_stuck = len(evidence.losses) >= LATE and evidence.is_stuck(HARDLY) and evidence.losses.min() >= 0
    if not about and not (update > VERY_LARGE_UPDATE and is_stuck):
        return None
    growth = _growth_of_rate(evidence)
    case = "rate grew" if growth > RATE_GROWTH else _case(evidence, about)
    size = "The updates are large"
    if not np.isnan(update):
        size = f"The first updates were {update:.2g}x the size of the weights (typical: {USUAL_UPDATE:g}x)"
    rate = f" at a learning rate of {first.learning_rate:.3g}" if first.learning_rate > 0 else ""
    grew = f" The rate has grown {growth:.2g} times." if growth > RATE_GROWTH else ""
    return Claim(f"{size}{rate}, and {harm}.{grew} {evidence.loss_in_words}", about, case)


def _case(evidence: Evidence, about: Sequence[Finding]) -> str:
    update = evidence.first_updates
    came = min((finding.step for finding in about), default=0)
    if (came > LATE and _had_fallen(evidence, came)) or not update > LARGE_UPDATE:
        return "ordinary"
    if update < HUGE_UPDATE:  # numbers may overflow in a training that goes well
        return "ordinary" if _fell_until_overflow(evidence, about) else "large"
    return "huge"


def _growth_of_rate(evidence: Evidence) -> float:
    """Return the largest rate over the first; 1 where the first was too small to matter, as in a warm-up."""
    rates = [snapshot.learning_rate for snapshot in evidence.history if snapshot.learning_rate > 0]
    return max(rates) / rates[0] if rates and evidence.first_updates > USUAL_UPDATE else 1.0


def _fell_until_overflow(evidence: Evidence, about: Sequence[Finding]) -> bool:
    overflow = next((finding for finding in about if finding.kind == "nonfinite"), None)
    past = evidence.losses_before(overflow.step) if overflow else np.empty(0)
    if len(past) < 2:
        return False
    return bool(past[-1] < FELL * past[0] and past.max() < ROSE * past[0])


def _had_fallen(evidence: Evidence, step: int) -> bool:
    past = evidence.losses_before(step - BEFORE_FINDING)
    return len(past) > EARLY and float(np.median(past[-RECENT:])) < HALVED * float(past[0])


LOSS_ROSE = "the loss rose"


def _harm(evidence: Evidence) -> str:
    """Return what went wrong, in words; empty where nothing did."""
    if evidence.found("not-learning"):
        return "the loss does not come down"
    rose_far = evidence.finite_loss_rise > ROSE_FAR
    if rose_far and evidence.is_stuck(NO_FALL):
        return LOSS_ROSE
    if any(finding.step >= 1 for finding in evidence.found("dead")):
        return "ReLUs died in training"
    if rose_far and evidence.found("nonfinite", "exploding"):
        return "numbers overflow"
    if evidence.loss_rise > ROSE and evidence.is_stuck(A_THIRD):
        return "the loss rose at first and barely recovered"
    if evidence.first_updates > HUGE_UPDATE and evidence.is_stuck(A_THIRD):
        return "the loss hardly falls"
    return "the loss does not fall" if evidence.is_stuck() else ""


@rule("missing warm-up", {"": 0.8, "huge": 0.7}, from_start=True)
def missing_warm_up(evidence: Evidence) -> Claim | None:
    """Adam takes full steps at once on attention and normalization layers, and the loss does not come down."""
    first, update = evidence.first, evidence.first_updates
    # Attention, and the normalizations of transformers, need it (Xiong et al., 2020, arXiv:2002.04745).
    needs_it = any(is_attention(kind) or is_layer_norm(kind) for kind in first.kinds)
    if not needs_it or not first.optimizer.startswith(("Adam", "NAdam")):
        return None
    rates = [snapshot.learning_rate for snapshot in evidence.history]
    rose = evidence.loss_rise > ROSE_A_LITTLE and not evidence.loss_fall > DOES_WELL
    stuck = len(evidence.losses) >= LATE and evidence.is_stuck(A_FIFTH)  # a language model takes more than a few steps
    if not (rose or stuck) or not (update > NOTICEABLE_UPDATE and rates[0] >= FULL_RATE * max(rates)):
        return None
    about = evidence.found("spike", "vanishing", "stalled", "dead", "exploding")
    if not (about or evidence.found("not-learning")) and evidence.still_learns:
        return None
    text = (
        f"{first.optimizer} starts at its full learning rate of {rates[0]:.3g}: the first updates were {update:.2g}x "
        f"the size of the weights. {evidence.loss_in_words}"
    )
    return Claim(text, about, "huge" if update > HUGE_UPDATE else "")


@rule("clipping too hard", 0.85)
def clipping_too_hard(evidence: Evidence) -> Claim | None:
    """Nearly all of the gradient is clipped away in most steps, and the loss hardly falls."""
    kept = np.array([snapshot.clip_coefficient for snapshot in evidence.history])
    kept = kept[np.isfinite(kept)]
    if len(kept) < EARLY or not np.median(kept) < CLIPPED_AWAY or not evidence.is_stuck(A_THIRD):
        return None
    text = f"Clipping leaves {np.median(kept):.2g} of the gradient in the median step. {evidence.loss_in_words}"
    return Claim(text, evidence.found("vanishing"))


@rule("weight decay too strong", 0.85, from_start=True)
def weight_decay_too_strong(evidence: Evidence) -> Claim | None:
    """The weights have shrunk to nothing, and the loss does not come down."""
    first, last = evidence.first, evidence.last
    left = _median(last.weight_norm / np.where(first.weight_norm > 0, first.weight_norm, np.nan))
    decay = evidence.in_use.weight_decay
    if len(evidence.history) < EARLY or not evidence.is_stuck() or not left < DECAYED or decay == 0:
        return None
    of = f" at a weight decay of {decay:.2g}" if decay > 0 else ""
    text = (
        f"The weights have shrunk to {left:.1g} of their first size in {last.step} steps{of}. {evidence.loss_in_words}"
    )
    return Claim(text, evidence.found("vanishing", "dead", "stalled"))


def _median(values: np.typing.NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
