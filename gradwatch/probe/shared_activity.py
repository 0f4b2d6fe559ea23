"""Dead units where each rank sees other samples: a unit is dead that fired on none of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch.probe.activations import ENOUGH_SAMPLES, ENOUGH_UNITS
from gradwatch.probe.norms import batches
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.terms import Rows, Sums, Terms
from gradwatch.records import Array

Flags = npt.NDArray[np.bool_]
Peaks = Mapping[int, tuple[Tensor, int]]


def add_units(terms: Terms, peaks: Peaks, rows: Rows, scalars: DeviceScalars) -> None:
    """Add which units there are, which of them fired, and over how many samples.

    Args:
        terms: take them.
        peaks: layer -> largest output of each unit that this process holds, number of samples.
        rows: layer -> where its units stand.
        scalars: take the numbers.
    """
    layers = [layer for layer in peaks if layer in rows]
    terms.count("samples", layers, [peaks[layer][1] for layer in layers])
    for positions, batch in batches([peaks[layer][0][: _length(rows[layer])] for layer in layers]):
        at = [np.arange(len(peak)) + rows[layers[i]].start for i, peak in zip(positions, batch, strict=True)]
        terms.count("units", np.concatenate(at))
        terms.add("fired", np.concatenate(at), scalars.values(1 - (torch.cat(batch) <= 0).double()))


def _length(row: slice) -> int:
    return int(row.stop - row.start)


class SharedActivity:
    """Which units of the ReLUs fired on any rank, over at least 100 samples.

    Example:
        >>> activity = SharedActivity()
        >>> step = {"samples": np.array([60.0]), "units": np.full(8, 2.0), "fired": np.arange(8) % 2.0}
        >>> [activity.take(step, {0: slice(0, 8)}).tolist() for _ in range(2)]
        [[nan], [0.5]]
    """

    def __init__(self) -> None:
        self._known: dict[int, float] = {}
        self._seen: dict[int, tuple[Flags, Flags, float]] = {}

    def take(self, sums: Sums, rows: Rows) -> Array:
        """Shares of dead units by layer, once enough was seen; later ones hold."""
        for layer, row in rows.items():
            if sums["samples"][layer]:
                self._look(layer, sums["units"][row] > 0, sums["fired"][row] > 0, sums["samples"][layer])
        shares = np.full(len(sums["samples"]), np.nan)
        shares[list(self._known)] = list(self._known.values())
        return shares

    def _look(self, layer: int, there: Flags, fired: Flags, samples: float) -> None:
        before = self._seen.pop(layer, None)
        if before is not None and before[0].shape == there.shape:
            there, fired, samples = there | before[0], fired | before[1], samples + before[2]
        if samples < ENOUGH_SAMPLES:
            self._seen[layer] = (there, fired, samples)
        elif there.sum() >= ENOUGH_UNITS:
            self._known[layer] = 1 - float(fired[there].mean())
