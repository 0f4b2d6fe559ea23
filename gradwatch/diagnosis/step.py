"""Causes in the step itself: old gradients, a clip or an optimizer without effect, replicas that differ."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.evidence import Evidence
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.records import Finding

FEW = 3  # measured steps that a clip must have left alone, so that it can be called idle


@rule("gradients are not zeroed", 0.97)
def gradients_are_not_zeroed(evidence: Evidence) -> Claim | None:
    """Gradients of an earlier step are still there when a step's backward pass begins."""
    about = evidence.found("carried-over")
    if not about:
        return None
    names = about[0].layers
    text = (
        f"When the backward pass of a step began, the gradient of {len(names)} parameters still held that of the step "
        f"before, among them {', '.join(names[:3])}: the optimizer steps along the sum of all gradients so far."
    )
    return Claim(text, about + evidence.found("exploding", "spike"))


@rule("replicas out of sync", 0.97)
def replicas_out_of_sync(evidence: Evidence) -> Claim | None:
    """Processes that should hold the same weights do not."""
    about = evidence.found("out-of-sync")
    return Claim(about[0].message, about) if about else None


@rule("shapes broadcast", 0.98)
def shapes_broadcast(evidence: Evidence) -> Claim | None:
    """The loss compares each output with each target."""
    about = evidence.found("broadcast")
    if not about:
        return None
    shapes = next((each.broadcast for each in evidence.history if each.broadcast), "")
    text = (
        f"The loss broadcasts output and target against each other, shapes {shapes} for N samples: each output meets "
        f"the targets of all samples, and the best that it can learn is their mean. {evidence.loss_in_words}"
    )
    return Claim(text, about)


@rule("step without effect", {"": 0.9, "cleared": 0.89, "skipped": 0.8, "put back": 0.9})
def step_without_effect(evidence: Evidence) -> Claim | None:
    """The optimizer steps, and the weights stay as they are, or are put back."""
    return _cleared(evidence) or _unmoved(evidence)


def _cleared(evidence: Evidence) -> Claim | None:
    """Look for a run in which gradients reach the layers, and no parameter has one when the optimizer steps."""
    about = tuple(finding for finding in evidence.found("stalled") if finding.case == "no gradient")
    last = evidence.last
    if not about or not len(last.params) or not np.isnan(last.param_grad_norm).all() or last.frozen_size > 0:
        return None
    owns = np.array([any(name.startswith(f"{layer}.") for name in last.params) for layer in last.layers], np.bool_)
    reached = owns & (last.grad_output_norm > 0)
    if not owns.any() or not reached[owns].all():
        return None
    text = (
        f"Gradients reach the outputs of all {int(owns.sum())} layers, and when the optimizer steps no parameter has "
        f"one: something clears them between backward() and step(), or the forward pass runs on copies of the weights."
    )
    return Claim(text, about, "cleared")


def _unmoved(evidence: Evidence) -> Claim | None:
    about = tuple(f for f in evidence.found("unmoved") if f.case in ("no effect", "skipped", "put back"))
    if not about:
        return None
    case = about[0].case
    return Claim(about[0].message, tuple(f for f in about if f.case == case), case if case != "no effect" else "")


@rule("clip without effect", {"": 0.9, "before backward": 0.9, "no gradients": 0.9, "never met": 0.4})
def clip_without_effect(evidence: Evidence) -> Claim | None:
    """A clip runs where it can't do anything, or its bound is never met while the gradient explodes."""
    about = evidence.found("idle-clip")
    if about:
        return Claim(about[0].message, about, about[0].case)
    harm = evidence.found("exploding", "spike", "nonfinite")
    clips = [s for s in evidence.history if s.clip == "norm" and np.isfinite([s.total_norm, s.clip_max_norm]).all()]
    if not harm or len(clips) < FEW or any(snapshot.total_norm > snapshot.clip_max_norm for snapshot in clips):
        return None
    largest = max(snapshot.total_norm for snapshot in clips)
    text = (
        f"The clip's bound of {clips[-1].clip_max_norm:.3g} was never met: the total norm was at most {largest:.3g} in "
        f"{len(clips)} measured steps."
    )
    return Claim(text, _without_nonfinite(harm), "never met")


def _without_nonfinite(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings that a lower bound could have prevented: a NaN has other causes."""
    return tuple(finding for finding in findings if finding.kind != "nonfinite")
