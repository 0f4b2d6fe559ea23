"""The layout of a step's sums: which device scalars and host counts are added into which cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch.probe.scalars import DeviceScalars
from gradwatch.records import Array

Indices = npt.NDArray[np.intp]
Terms = tuple[Indices, Indices, Array]  # for each term: cell of the row, slot of its number, weight
Sums = Mapping[str, Array]  # field -> its sums
Rows = Mapping[int, slice]  # layer -> its places, in a field that has several for a layer


class SumLayout:
    """The sums of a step as one row of cells, and the terms of each sum.

    A field is a part of the row with a name and a fixed length, such as the energy of each layer's gradient. A term is
    a number that waits in a slot of :class:`~gradwatch.probe.scalars.DeviceScalars`, or one that the host knows. Terms
    are only noted here. The row is computed from them once: on the host after the transfer, or on the device before a
    collective.

    The cells follow from the fields and their lengths alone, never from what a process saw. So they are the same on all
    ranks, and one collective adds up all of them.

    Attributes:
        size: number of all sums.

    Example:
        >>> scalars = DeviceScalars()
        >>> slot = scalars.norm(torch.tensor([3.0, 4.0]))
        >>> layout = SumLayout({"energy": 2, "entries": 2})
        >>> layout.add("energy", [1], [slot], power=2)
        >>> layout.count("entries", [1], [2])
        >>> layout.split(layout.on_host(scalars.to_host()))
        {'energy': array([ 0., 25.]), 'entries': array([0., 2.])}
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        bounds = list(accumulate(lengths.values(), initial=0))
        self._fields = {name: slice(*ends) for name, ends in zip(lengths, pairwise(bounds), strict=True)}
        self.size = bounds[-1]
        self._terms: dict[int, list[Terms]] = defaultdict(list)  # by the power they are raised to
        self._counts: list[tuple[Indices, Array]] = []

    def _cells(self, field: str, at: Any) -> Indices:
        return np.asarray(at, np.intp) + self._fields[field].start

    def add(self, field: str, at: Any, slots: Any, *, power: int = 1, weight: Any = 1.0) -> None:
        """Add numbers that wait in slots to the sums ``at`` of a field, each raised to a power, then times a weight."""
        cells = self._cells(field, at)
        self._terms[power].append((cells, np.asarray(slots, np.intp), _as_many(weight, cells)))

    def count(self, field: str, at: Any, amounts: Any = 1.0) -> None:
        """Add amounts that are known on the host."""
        cells = self._cells(field, at)
        self._counts.append((cells, _as_many(amounts, cells)))

    def _joined_terms(self) -> Iterator[tuple[int, Indices, Indices, Array]]:
        for power, terms in self._terms.items():
            cells, slots, weights = (np.concatenate(side) for side in zip(*terms, strict=True))
            yield power, cells, slots, weights

    def _counted(self) -> Array:
        if not self._counts:
            return np.zeros(self.size)
        cells, amounts = (np.concatenate(side) for side in zip(*self._counts, strict=True))
        return np.bincount(cells, amounts, self.size).astype(np.float64)

    def on_host(self, values: Array) -> Array:
        """Return all sums, from the numbers by slot."""
        row = self._counted()
        for power, cells, slots, weights in self._joined_terms():
            row += np.bincount(cells, values[slots] ** power * weights, self.size)
        return row

    def on_device(self, scalars: DeviceScalars, device: torch.device) -> Tensor:
        """Return all sums of what ``scalars`` holds, left on the device; ``scalars`` is empty afterwards."""
        # As on_host, but in torch: nothing is read, and the collective that follows needs the row on the device.
        numbers, places = scalars.on_device(device)
        row = _moved(self._counted(), device)
        for power, cells, slots, weights in self._joined_terms():
            terms = numbers[_moved(places[slots], device)] ** power * _moved(weights, device)
            row.index_add_(0, _moved(cells, device), terms)
        return row

    def split(self, row: Array) -> dict[str, Array]:
        """Return the sums by field."""
        return {name: row[cells] for name, cells in self._fields.items()}


def _as_many(numbers: Any, cells: Indices) -> Array:
    array = np.asarray(numbers, np.float64)
    return array if array.ndim else np.full(len(cells), array)  # an eighth of the time of np.broadcast_to


def _moved(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def rows_of(lengths: Sequence[int]) -> tuple[dict[int, slice], int]:
    """Return rows one after the other for the layers with a length, and the length of all rows.

    Example:
        >>> rows_of([2, 0, 3])
        ({0: slice(0, 2, None), 2: slice(2, 5, None)}, 5)
    """
    ends = list(accumulate(lengths))
    rows = {layer: slice(end - length, end) for layer, (end, length) in enumerate(zip(ends, lengths, strict=True))}
    return {layer: row for layer, row in rows.items() if row.stop > row.start}, ends[-1] if ends else 0
