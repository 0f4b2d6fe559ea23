"""Sums over the numbers of a step, laid out before any of the numbers is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch.probe.scalars import DeviceScalars
from gradwatch.records import Array

Indices = npt.NDArray[np.intp]
Part = tuple[Indices, Indices, Array]
Sums = Mapping[str, Array]  # field -> what was added up
Rows = Mapping[int, slice]  # layer -> the places that belong to it, in a field that has several for a layer


class SumLayout:
    """What is added to what: rows of sums over numbers that wait on a device, and over such that are known.

    The layout follows from the fields and their lengths alone, never from what a process saw. So it is the same on all
    ranks, and one collective adds up all of it.

    Args:
        lengths: field -> how many sums stand in it.

    Attributes:
        size: number of all sums.

    Example:
        >>> scalars = DeviceScalars()
        >>> slot = scalars.norm(torch.tensor([3.0, 4.0]))
        >>> terms = SumLayout({"energy": 2, "entries": 2})
        >>> terms.add("energy", [1], [slot], power=2)
        >>> terms.count("entries", [1], [2])
        >>> terms.split(terms.on_host(scalars.to_host()))
        {'energy': array([ 0., 25.]), 'entries': array([0., 2.])}
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        bounds = list(accumulate(lengths.values(), initial=0))
        self._fields = {name: slice(*ends) for name, ends in zip(lengths, pairwise(bounds), strict=True)}
        self.size = bounds[-1]
        self._parts: dict[int, list[Part]] = defaultdict(list)
        self._known: list[tuple[Indices, Array]] = []

    def _targets(self, field: str, at: Any) -> Indices:
        return np.asarray(at, np.intp) + self._fields[field].start

    def add(self, field: str, at: Any, slots: Any, *, power: int = 1, weight: Any = 1.0) -> None:
        """Add numbers to the sums ``at`` of a field.

        Args:
            field: its name.
            at: places in the field.
            slots: where the numbers wait, one for each place.
            power: what each is raised to.
            weight: what each is then multiplied by.
        """
        targets = self._targets(field, at)
        self._parts[power].append((targets, np.asarray(slots, np.intp), _as_many(weight, targets)))

    def count(self, field: str, at: Any, amounts: Any = 1.0) -> None:
        """Add amounts that are known already."""
        targets = self._targets(field, at)
        self._known.append((targets, _as_many(amounts, targets)))

    def _merged(self) -> dict[int, Part]:
        return {power: _joined(parts) for power, parts in self._parts.items()}

    def _known_sums(self) -> Array:
        if not self._known:
            return np.zeros(self.size)
        targets, amounts = (np.concatenate(side) for side in zip(*self._known, strict=True))
        return np.bincount(targets, amounts, self.size).astype(np.float64)

    def on_host(self, values: Array) -> Array:
        """All sums, from the numbers by slot."""
        row = self._known_sums()
        for power, (targets, slots, weights) in self._merged().items():
            row += np.bincount(targets, values[slots] ** power * weights, self.size)
        return row

    def on_device(self, scalars: DeviceScalars, device: torch.device) -> Tensor:
        """All sums of what ``scalars`` holds, left on the device; ``scalars`` is empty afterwards."""
        numbers, places = scalars.on_device(device)
        row = _moved(self._known_sums(), device)
        for power, (targets, slots, weights) in self._merged().items():
            terms = numbers[_moved(places[slots], device)] ** power * _moved(weights, device)
            row.index_add_(0, _moved(targets, device), terms)
        return row

    def split(self, row: Array) -> dict[str, Array]:
        """The sums by field."""
        return {name: row[place] for name, place in self._fields.items()}


def _as_many(numbers: Any, targets: Indices) -> Array:
    array = np.asarray(numbers, np.float64)
    return array if array.ndim else np.full(len(targets), array)  # an eighth of the time of np.broadcast_to


def _joined(parts: list[Part]) -> Part:
    targets, slots, weights = (np.concatenate(side) for side in zip(*parts, strict=True))
    return targets, slots, weights


def _moved(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def rows_of(lengths: Sequence[int]) -> tuple[dict[int, slice], int]:
    """Rows one after the other for the layers with a length, and the length of all together.

    Example:
        >>> rows_of([2, 0, 3])
        ({0: slice(0, 2, None), 2: slice(2, 5, None)}, 5)
    """
    ends = list(accumulate(lengths))
    rows = {layer: slice(end - length, end) for layer, (end, length) in enumerate(zip(ends, lengths, strict=True))}
    return {layer: row for layer, row in rows.items() if row.stop > row.start}, ends[-1] if ends else 0
