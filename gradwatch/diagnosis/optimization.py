"""Rules for how it is trained: the learning rate, the warm-up, the clip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.diagnosis.run import EARLY, LARGE_STEP, Run
from gradwatch.records import Diagnosis, Snapshot

_ROSE = 3.0  # times the first loss
_TINY_STEP = 1e-4  # of the weights: it would take 10,000 steps in one direction to move them
_CLIPPED = 0.05  # a twentieth of the gradient is left: 20 times over the 10 % of steps that the Tuning Playbook clips


def learning_rate(run: Run) -> Iterator[Diagnosis]:
    """The first steps are large against the weights, and the loss or the network does not bear it."""
    found = run.of("exploding", "nonfinite", "dead", "saturated", "spike", "vanishing")
    step = run.step_to_weight
    peak = float(np.max(run.losses, initial=-np.inf))
    rose = peak > _ROSE * abs(run.start_loss) and run.start_loss != 0
    if not (found or rose or run.is_stuck) or not (step > LARGE_STEP / 3 or rose):
        return
    scores = (0.88, 0.8) if step > LARGE_STEP else (0.65 if rose else 0.4, 0.4)
    score = scores[0 if found or rose else 1]
    rate = "" if np.isnan(run.first.learning_rate) else f" (learning rate {run.first.learning_rate:g})"
    evidence = f"A step of the first {EARLY} is up to {step:.2g} of the weights{rate}; about 1e-3 is usual. "
    evidence += f"The loss began at {run.start_loss:.3g}, its highest was {peak:.3g}, it is {run.end_loss:.3g} now."
    remedies = ("a lower learning rate", "warm-up", "clip by the global norm")
    yield Diagnosis("learning rate too high", evidence, score * _without_attention(run), found, remedies)


def _without_attention(run: Run) -> float:
    return 0.9 if _wants_warm_up(run) else 1.0


def _wants_warm_up(run: Run) -> bool:
    """A transformer that an optimizer of Adam's kin takes at its full rate from the first step on."""
    kinds = run.last.kinds if run.history else ()
    is_transformer = any("Attention" in kind for kind in kinds) or sum("LayerNorm" in kind for kind in kinds) >= 4
    rates = [snapshot.learning_rate for snapshot in run.history if np.isfinite(snapshot.learning_rate)]
    return is_transformer and bool(rates) and rates[0] > 0.5 * max(rates) and max(rates) <= 0.02


def warm_up(run: Run) -> Iterator[Diagnosis]:
    """Attention and its normalizations are torn apart by full steps while Adam's averages are still noise."""
    found = run.of("spike", "exploding", "nonfinite", "vanishing", "dead", "stalled")
    if _wants_warm_up(run) and (run.is_stuck or found) and run.step_to_weight > LARGE_STEP / 3:
        evidence = (
            f"A transformer takes its full learning rate, {run.first.learning_rate:g}, from the first step on; a step "
            f"is {run.step_to_weight:.2g} of the weights. The loss is {run.end_loss:.3g}, it began at "
            f"{run.start_loss:.3g}."
        )
        remedies = ("a linear warm-up over the first steps", "normalization before attention", "a lower learning rate")
        yield Diagnosis("missing warm-up", evidence, 0.89, found, remedies)


def clipping(run: Run) -> Iterator[Diagnosis]:
    """The clip leaves next to nothing of every gradient, and the optimizer takes that as it is."""
    coefficients = np.array([snapshot.clip_coefficient for snapshot in run.history])
    known = coefficients[np.isfinite(coefficients)]
    if len(known) < EARLY // 2 or np.median(known) > _CLIPPED or not run.is_stuck:
        return
    if run.step_to_weight < _TINY_STEP and not _scales_itself(run.last):
        evidence = (
            f"The clip leaves {np.median(known):.1e} of the gradient at half of the steps; a step is then "
            f"{run.step_to_weight:.1e} of the weights, and the loss is {run.end_loss:.3g} after {run.start_loss:.3g}."
        )
        remedies = ("a larger max_norm, such as the 90th percentile of the norms", "no clip", "an adaptive optimizer")
        yield Diagnosis("clipping too hard", evidence, 0.92, (), remedies)


def _scales_itself(snapshot: Snapshot) -> bool:
    return any(name in snapshot.optimizer.lower() for name in ("adam", "lion", "rmsprop", "adagrad", "lamb"))
