"""Processes that should hold the same weights, and do not."""

from __future__ import annotations

from dataclasses import dataclass

from gradwatch.checks import require_whole
from gradwatch.records import Finding, Snapshot

_NAMED = 3  # tensors that a message names


@dataclass
class OutOfSync:
    """Names the parameters and buffers that are not the same on all processes, bit for bit, after a step.

    Processes that train one model take the same step from the same weights. They drift apart when some batches go past
    DDP (``model.module(x)``, ``no_sync`` at a step), or when a process loads, changes or initializes weights alone.
    The sums of a measured step hold a checksum of each tensor, so this needs no communication.

    Methods that let replicas drift on purpose and average them now and then (local SGD) need detectors without this.

    Args:
        patience: measured steps in a row until it is a finding: a copy may be in the making at one of them.

    Raises:
        ValueError: when ``patience`` is not a whole number above 0.

    Example:
        >>> apart = Snapshot(4, (), out_of_sync={"w": 2})
        >>> OutOfSync()(apart).message
        'replicas differ: 1 tensor is not the same on all processes: w; rank 2 holds other values than the rest.'
    """

    patience: int = 2

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Finding | None:
        """Return one finding on all tensors that differ."""
        apart = snapshot.out_of_sync
        if not apart:
            return None
        message = f"replicas differ: {_tensors(tuple(apart))}{_rank(set(apart.values()))}."
        return Finding("out-of-sync", tuple(apart), snapshot.step, float(len(apart)), 0.0, message, severity="error")


def _tensors(names: tuple[str, ...]) -> str:
    count = f"{len(names)} tensors are" if len(names) > 1 else "1 tensor is"
    among = ", among them " if len(names) > _NAMED else ": "
    return f"{count} not the same on all processes{among}{', '.join(names[:_NAMED])}"


def _rank(ranks: set[int]) -> str:
    """Return in words which process differs, where it is one alone for all tensors of which that is known."""
    known = ranks - {-1}
    return f"; rank {min(known)} holds other values than the rest" if len(known) == 1 else ""
