"""Causes in the arithmetic: operations without a guard, numbers that half precision can't hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import before, beginning, found, is_rising, is_stuck, told
from gradwatch.records import Diagnosis, Finding, Snapshot


def unguarded_operation(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """NaN or Inf appear while everything before was moderate."""
    about = found(findings, "nonfinite")
    if not about or not history:
        return None
    past = before(history, about[0].step)
    if len(past) > 2 and is_rising(past):
        return None
    start = history[0]
    outputs = start.output_rms[~np.isnan(start.output_rms)]
    only_backward = about[0].layers[:1] != ("loss",) and np.isfinite(outputs).all()
    where = "in the backward pass alone" if only_backward else "in the loss"
    calm = f"the loss before it was {past[-1]:.3g}" if len(past) else "it was there at the first step"
    evidence = f"NaN or Inf appear {where} at step {about[0].step}; {calm}."
    remedies = ("an epsilon in divisions, logs and roots", "torch's fused losses on raw outputs", "skip such steps")
    score = 0.8 if len(past) < 3 else 0.65 if only_backward else 0.55
    return Diagnosis("unguarded operation", evidence, score, about, remedies)


def precision_underflow(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """Gradients of float16 that are exactly zero, or a loss scale that leaves no step."""
    first = beginning(history)
    if first is None or first.dtype != "float16":
        return None
    zeros = float(np.nanmedian(first.zero_fraction)) if (~np.isnan(first.zero_fraction)).any() else 0.0
    skipped = float(np.mean([s.skipped for s in history]))
    scales = [s.loss_scale for s in history if s.loss_scale > 0]
    collapsed = bool(scales) and scales[-1] < 1
    overflow = found(findings, "nonfinite")
    if not (skipped > 0.5 or collapsed or overflow or (zeros > 0.6 and is_stuck(history, 0.2))):
        return None
    evidence = (
        f"The gradients are of float16: {zeros:.0%} of the entries of the median layer are exactly zero at the "
        f"first step, {skipped:.0%} of the measured steps were skipped. {told(history)}"
    )
    remedies = ("bfloat16", "a loss scale that adapts (GradScaler)", "float32 for the loss and its last layer")
    about = overflow + found(findings, "stalled", "vanishing", "dead")
    return Diagnosis("precision underflow", evidence, 0.95, about, remedies)
