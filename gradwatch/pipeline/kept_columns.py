"""The columns of a Snapshot that are kept: all of them, or those that patterns name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gradwatch.detectors import default_detectors
from gradwatch.probe.readings import ALL, Readings
from gradwatch.records import Detector
from gradwatch.snapshot import ARRAYS, Snapshot

# They grow with the model. What has one value a step, a parameter group or a loss is always kept.
_GROWING = ("layers", "params")
CHOICES = (*(name for name, along in ARRAYS.items() if along in _GROWING), "calls", "feeds")
_BLANK: dict[str, Any] = {"calls": {}, "feeds": ()}  # of those that are no array


def readings_for(columns: Sequence[str] | None, detectors: Sequence[Detector] | None) -> Readings:
    """Return what is read at a measured step: what a kept column or a detector needs.

    Example:
        >>> from gradwatch import Vanishing
        >>> readings_for(["grad_*"], [Vanishing()])
        Readings(outputs=False, units=False, saturation=False, zeros=False, updates=True)
    """
    asked = default_detectors() if detectors is None else detectors
    # Of an iterator nothing is taken here, as the detectors are listed later.
    return Readings.wanted(KeptColumns(columns).__contains__, asked) if isinstance(asked, Sequence) else ALL


class KeptColumns:
    """Drops the columns of a Snapshot that no pattern names, before it is kept, recorded and logged.

    The detectors have seen what they need by then, so no finding is lost. What is neither kept nor needed is not even
    read, see :class:`~gradwatch.probe.readings.Readings`. What reads the history finds less: a diagnosis has the kept
    columns as its evidence, and a chart shows nothing of the others. A column that is dropped takes no memory, and none
    of the record.

    Args:
        patterns: names of columns, or patterns such as ``*_norm``; None keeps all.

    Raises:
        ValueError: for a pattern that matches no column; it lists all there are.

    Example:
        >>> snapshot = Snapshot(0, ("fc",), grad_norm=[0.5], weight_norm=[2.0], size=[8.0])
        >>> kept = KeptColumns(["grad_*"])(snapshot)
        >>> kept.grad_norm, kept.weight_norm
        (array([0.5]), array([nan]))
        >>> KeptColumns(["gradient"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: columns=['gradient'] names no column; expected names or patterns of: grad_norm, ...
    """

    def __init__(self, patterns: Sequence[str] | None) -> None:
        given = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in CHOICES):
                known = ", ".join(CHOICES)
                raise ValueError(f"columns=[{pattern!r}] names no column; expected names or patterns of: {known}")
        self._dropped = [name for name in CHOICES if not any(fnmatchcase(name, pattern) for pattern in given)]

    def __contains__(self, column: object) -> bool:
        """Return True for a column that is kept."""
        return column not in self._dropped

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        """Return the Snapshot with the columns that are kept."""
        if not self._dropped:
            return snapshot
        changes: dict[str, Any] = {name: _BLANK.get(name) for name in self._dropped}
        kept = replace(snapshot, **changes)
        if "update_to_weight" in self._dropped:  # a Snapshot makes it anew of two other columns, where these are kept
            object.__setattr__(kept, "update_to_weight", np.broadcast_to(np.nan, len(kept.layers)))
        return kept
