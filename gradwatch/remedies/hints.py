"""What the measured steps say about the settings of a remedy, and about which one is meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.records import Array, Snapshot

_FIRST = 5  # steps, before a training has gone wrong for long
_LARGEST = 20.0
_RISE = 10.0


def usual_norm(history: Sequence[Snapshot]) -> float:
    """Twice the usual total norm of the first steps, as a bound that touches few healthy ones; 1 where it is too large.

    Example:
        >>> usual_norm([Snapshot(step, ("a",), total_norm=0.4) for step in range(3)]), usual_norm([])
        (0.8, 1.0)
    """
    norms = np.array([snapshot.total_norm for snapshot in history])
    norms = norms[np.isfinite(norms) & (norms > 0)][:_FIRST]
    bound = 2 * float(np.median(norms)) if len(norms) else 1.0
    return float(f"{bound:.2g}") if bound <= _LARGEST else 1.0


def broke_at_once(history: Sequence[Snapshot]) -> bool:
    """Whether NaN or Inf came out of an ordinary step: a bad batch, and no training that had grown out of hand.

    Example:
        >>> history = [Snapshot(step, ("a",), loss=loss) for step, loss in enumerate([1.0, 0.9, float("inf")])]
        >>> broke_at_once(history), broke_at_once(history[:2])
        (True, False)
    """
    losses = np.concatenate([_losses(snapshot) for snapshot in history]) if history else np.empty(0)
    bad = np.flatnonzero(np.isinf(losses))
    if not len(bad) or bad[0] == 0:
        return False
    before = losses[: bad[0]]
    return bool(before[-1] < _RISE * np.median(before))


def _losses(snapshot: Snapshot) -> Array:
    known = snapshot.trace_loss if len(snapshot.trace_loss) else np.array([snapshot.loss])
    losses: Array = known[~np.isnan(known)]
    return losses
