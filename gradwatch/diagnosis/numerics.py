"""Causes in the arithmetic: unguarded operations, half precision, a loss without a minimum."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.evidence import Evidence, is_rising
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.records import Finding

FEW_LOSSES = 2  # with no more before it, NaN or Inf came at once
# Half precision: share of zeros in the gradient of the median layer, of the skipped steps, and the least loss scale.
ZEROS, SKIPPED, LEAST_SCALE = 0.6, 0.5, 1.0
STUCK = 0.2  # share of the loss
ENDLESS = 100.0  # times the first loss, below zero


# Sums and products overflow where numbers have grown: that is a training that diverges, which no guard mends.
GROWING = frozenset({
    "add", "sub", "rsub", "neg", "mul", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "linear", "embedding",
    "conv1d", "conv2d", "conv3d", "lstm", "gru", "rnn_tanh", "rnn_relu", "square", "sum", "mean", "cumsum", "getitem",
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
})  # fmt: skip
NO_OPERATION = ("", "batch", "weights")  # cases of a nonfinite finding


def named_operation(evidence: Evidence) -> Finding | None:
    """Return the finding that names an operation that a guard can mend; None where none does."""
    named = (f for f in evidence.found("nonfinite") if f.case not in NO_OPERATION and not is_overflow(f))
    return next(named, None)


def is_overflow(finding: Finding) -> bool:
    """Return True if a sum, a product or a whole power turned NaN or Inf: what it was given had grown too large."""
    return finding.case in GROWING or finding.case.startswith("pow(")


@rule("unguarded operation", {"named": 0.97, "rising": 0.6, "at once": 0.8, "backward": 0.65, "loss": 0.55})
def unguarded_operation(evidence: Evidence) -> Claim | None:
    """NaN or Inf appear while everything before was moderate."""
    about = evidence.found("nonfinite")
    if not about:
        return None
    past = evidence.losses_before(about[0].step)
    named = named_operation(evidence)
    if named is not None:
        is_growing = len(past) > FEW_LOSSES and is_rising(past)
        return Claim(named.message, about, named.case, "rising" if is_growing else "named")
    if about[0].case == "batch" or is_overflow(about[0]) or not evidence.history:
        return None
    if len(past) > FEW_LOSSES and is_rising(past):
        return None
    outputs = evidence.first.output_rms[~np.isnan(evidence.first.output_rms)]
    if about[0].case == "weights":
        return Claim(about[0].message, about, "loss")
    only_backward = about[0].layers[:1] != ("loss",) and np.isfinite(outputs).all()
    where = "in the backward pass alone" if only_backward else "in the loss"
    calm = f"the loss before it was {past[-1]:.3g}" if len(past) else "it was there at the first step"
    case = "at once" if len(past) <= FEW_LOSSES else "backward" if only_backward else "loss"
    return Claim(f"NaN or Inf appear {where} at step {about[0].step}; {calm}.", about, case)


@rule("precision underflow", {"": 0.95, "weights": 0.9})
def precision_underflow(evidence: Evidence) -> Claim | None:
    """Updates are smaller than the weights' half precision can hold, or gradients in float16 are."""
    return _lost_updates(evidence) or (_lost_gradients(evidence) if evidence.saw_start else None)


def _lost_updates(evidence: Evidence) -> Claim | None:
    about = tuple(finding for finding in evidence.found("unmoved") if finding.case == "rounded away")
    dtypes = dict(zip(evidence.last.params, evidence.last.param_dtypes, strict=False))
    narrow = tuple(finding for finding in about if dtypes.get(finding.layers[0]) in ("bfloat16", "float16"))
    return Claim(narrow[0].message, narrow, "weights") if narrow else None


def _lost_gradients(evidence: Evidence) -> Claim | None:
    """Look at gradients in float16 that are exactly zero, and at a loss scale that leaves no step."""
    first, history = evidence.first, evidence.history
    if first.dtype != "float16":
        return None
    zeros = float(np.nanmedian(first.zero_fraction)) if (~np.isnan(first.zero_fraction)).any() else 0.0
    skipped = float(np.mean([snapshot.skipped for snapshot in history]))
    scales = [snapshot.loss_scale for snapshot in history if snapshot.loss_scale > 0]
    collapsed = bool(scales) and scales[-1] < LEAST_SCALE
    overflow = evidence.found("nonfinite")
    if not (skipped > SKIPPED or collapsed or overflow or (zeros > ZEROS and evidence.is_stuck(STUCK))):
        return None
    text = (
        f"The gradients are in float16: {zeros:.0%} of the entries of the median layer are exactly zero at the first "
        f"step, {skipped:.0%} of the measured steps were skipped. {evidence.loss_in_words}"
    )
    return Claim(text, overflow + evidence.found("stalled", "vanishing", "dead"))


@rule("unbounded loss", 0.9)
def unbounded_loss(evidence: Evidence) -> Claim | None:
    """The loss has fallen far below zero, ever faster, until numbers overflow."""
    row = evidence.losses[np.isfinite(evidence.losses)]
    about = evidence.found("exploding", "nonfinite", "spike")
    if not about or len(row) <= FEW_LOSSES or not row.min() < -ENDLESS * max(abs(float(row[0])), 1.0):
        return None
    text = f"The loss fell from {row[0]:.3g} to {row.min():.3g}, and the numbers grow with it: it has no lower bound."
    return Claim(text, about)
