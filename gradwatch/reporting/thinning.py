"""Thins a record that grows large: fewer Snapshots are written as it fills, so that it ends at its bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gradwatch.records import Snapshot

MOST_BYTES = 10**9  # of a record: beyond it, to read one takes minutes and some GB of memory
_LOSSES = ("trace_step", "trace_loss", "trace_total_norm")


class Thinning:
    """Says which Snapshots of a run are written into a record of bounded size.

    All of them are, until the record has half of its bound. From there on every second one is, from three quarters on
    every fourth, and so on: each half of what is left is written at half the rate, so that no run is too long. It is
    the rule of a monitor's ``history``, but for the lines that are in the file already, which stay.

    No loss is lost: those of a Snapshot that is left out, and of the unmeasured steps before it, go into the next one.

    Args:
        most_bytes: bound of the record.

    Attributes:
        every: of the measured steps one in so many is written; 1 for all.

    Example:
        >>> thinning = Thinning(1000)
        >>> written = [thinning.kept(Snapshot(step, ()), size=600) for step in range(4)]
        >>> thinning.every, [snapshot.step for snapshot in written if snapshot]
        (2, [1, 3])
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self.every = 1
        self._passed: list[Snapshot] = []  # left out since the last one that was kept

    def kept(self, snapshot: Snapshot, size: int) -> Snapshot | None:
        """Return the Snapshot, with the losses of those left out before it; None where it is left out itself.

        Args:
            snapshot: the latest.
            size: bytes of the record so far.
        """
        while self._most_bytes - size < self._most_bytes / (2 * self.every) and size < self._most_bytes:
            self.every *= 2
        if self._passed:
            self._passed[-1] = _only_losses(self._passed[-1])
        self._passed.append(snapshot)
        return None if len(self._passed) < self.every or size >= self._most_bytes else self.last()

    def last(self) -> Snapshot | None:
        """Return the latest Snapshot if it was left out, as the end of a run is always written."""
        passed, self._passed = self._passed, []
        return _with_losses(passed) if passed else None


def _only_losses(snapshot: Snapshot) -> Snapshot:
    return Snapshot(snapshot.step, (), **{name: getattr(snapshot, name) for name in _LOSSES})


def _with_losses(snapshots: list[Snapshot]) -> Snapshot:
    """Return the last Snapshot, with the losses of all."""
    if len(snapshots) == 1:
        return snapshots[0]
    together: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in snapshots]) for name in _LOSSES}
    return replace(snapshots[-1], **together)
