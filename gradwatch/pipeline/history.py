"""The Snapshots that are kept: a bounded number, spread over the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from gradwatch.records import Snapshot

_KEPT = 100  # in a checkpoint, which shall stay small
_EMPTY = {field.name: getattr(Snapshot(0, ()), field.name) for field in fields(Snapshot)}  # what each field is made of


class History(list[Snapshot]):
    """A list that thins itself: when it is full every second Snapshot goes, and from then on every second is kept.

    The latest is always there. Between the others the distance is the same all over the run, up to a factor of 2.

    Args:
        size: how many are kept at the most.

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
        self._count = 0  # of all that were ever added

    def add(self, snapshot: Snapshot) -> None:
        """Add the latest."""
        if self and (self._count - 1) % self._stride:
            self.pop()  # it was kept only for being the latest
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
        """At most 100 of them, spread over the run, as plain lists and numbers."""
        kept = History(_KEPT)
        for snapshot in self:
            kept.add(snapshot)
        return [_plain(snapshot) for snapshot in kept]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Go on from there."""
        self.clear()
        self._stride, self._count = 1, 0
        for item in state:
            self.add(_snapshot(item))


def _plain(value: Any) -> Any:
    """Lists, numbers and texts, as torch.load takes them with ``weights_only`` and JSON too."""
    if isinstance(value, Snapshot):
        columns = {name: getattr(value, name) for name in _EMPTY}
        return {name: _plain(column) for name, column in columns.items() if not _is_blank(column)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _is_blank(column: Any) -> bool:
    return isinstance(column, np.ndarray) and bool(np.isnan(column).all())


def _snapshot(state: Mapping[str, Any]) -> Snapshot:
    restored = {name: _like(_EMPTY[name], value) for name, value in state.items() if name in _EMPTY}
    return Snapshot(**restored)


def _like(kind: Any, value: Any) -> Any:
    if isinstance(kind, np.ndarray):
        return np.asarray(value, kind.dtype)
    if isinstance(kind, Mapping):
        return {key: np.asarray(item) for key, item in value.items()}
    return tuple(value) if isinstance(kind, tuple) else value
