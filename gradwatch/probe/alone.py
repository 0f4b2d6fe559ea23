"""A process that trains alone: its sums are all there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from gradwatch.probe.activations import UnitActivity
from gradwatch.probe.graph import Graph
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.terms import Indices, Rows, Sums, Terms
from gradwatch.records import Array


class Alone:
    """Adds up a step's sums of one process; what :class:`~gradwatch.probe.together.Together` does for several.

    Args:
        activity: what the hooks saw of ReLUs.
    """

    batches = 1

    def __init__(self, activity: UnitActivity) -> None:
        self._activity = activity

    def check(self, names: Sequence[str]) -> None:
        """There is nobody to disagree."""

    def see(self, peaks: Iterable[tuple[str, Tensor, int]]) -> None:
        """Take in what ReLUs put out in the calls that count: layer, largest output of each unit, samples."""
        for peak in peaks:
            self._activity.add(*peak)

    def unit_counts(self, index: Mapping[str, int]) -> dict[int, int]:
        """Layer -> how many sums its units need: none, as their shares are counted on the device."""
        return {}

    def room(self, wanted: Indices) -> Indices:
        """All that is wanted."""
        return wanted

    def add_activity(
        self, terms: Terms, scalars: DeviceScalars, index: Mapping[str, int], rows: Rows, graph: Graph
    ) -> None:
        """Add the shares of dead units."""
        latest: dict[int, int] = {}
        for layers, shares in self._activity.dead_shares():
            numbered = zip(layers, scalars.values(shares), strict=True)
            latest |= {index[layer]: slot for layer, slot in numbered if layer in index}  # a checkpoint may know others
        terms.add("dead", list(latest), list(latest.values()))
        terms.count("looked_at", list(latest))

    def add_up(self, terms: Terms, scalars: DeviceScalars, wanted: Indices) -> Callable[[Array], Sums]:
        """How the sums come from the numbers in ``scalars``, once these are on the host."""
        return lambda values: terms.split(terms.on_host(values))

    def dead_fraction(self, sums: Sums, rows: Rows) -> Array:
        """Shares of dead units by layer."""
        return np.where(sums["looked_at"] > 0, sums["dead"], np.nan)
