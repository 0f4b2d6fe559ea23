"""The history of a run: a bounded number of Snapshots, spread over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwatch.records import Snapshot

_KEPT = 100  # in a checkpoint, which should stay small


class History(list[Snapshot]):
    """A list that thins itself: when it is full, it drops every second Snapshot, and from then on keeps half as many.

    The latest is always there. The distance of the others is the same over the whole run, up to a factor of 2.

    Args:
        size: largest number of Snapshots.

    Example:
        >>> history = History(size=4)
        >>> for step in range(10):
        ...     history.add(Snapshot(step, ()))
        >>> [snapshot.step for snapshot in history]
        [0, 4, 8, 9]
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._stride = 1
        self._count = 0  # of all that were added

    def add(self, snapshot: Snapshot) -> None:
        """Add the latest Snapshot."""
        if self and (self._count - 1) % self._stride:
            self.pop()  # it was kept only because it was the latest
        self.append(snapshot)
        self._count += 1
        while len(self) > self._size:
            self._thin()

    def _thin(self) -> None:
        latest = self[-1]
        is_kept = (self._count - 1) % (2 * self._stride) == 0
        self._stride *= 2
        self[:] = self[::2] if is_kept or len(self) % 2 == 0 else self[:-1:2]
        if self[-1] is not latest:
            self.append(latest)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return at most 100 Snapshots, spread over the run, as plain lists and numbers."""
        kept = History(_KEPT)
        for snapshot in self:
            kept.add(snapshot)
        return [snapshot.to_dict() for snapshot in kept]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Go on from such a state."""
        self.clear()
        self._stride, self._count = 1, 0
        for item in state:
            self.add(Snapshot.from_dict(item))
