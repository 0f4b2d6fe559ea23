"""Dead and saturated units, read off what an activation puts out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import runs_forward_of
from gradwatch.probe.norms import batches
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import Rows, SumLayout, Sums
from gradwatch.records import Array

_RELUS = (nn.ReLU, nn.ReLU6)  # a unit at 0 is off; other rectifiers are off at other values
ENOUGH_UNITS = 8  # of four units, two that are off are no trouble, and a gate may have no more
ENOUGH_SAMPLES = 100  # SageMaker Debugger calls a ReLU dead that is active less than 1 % of the time

# Output beyond which the slope is under 2.7 % of the steepest, as (centre, distance): that is a Sigmoid's input beyond
# 5, the bound of DeepDiagnosis (Wardat et al., ICSE 2022), carried over to the other bounded activations by slope.
_SATURATION: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.5, 0.49331),
    nn.Tanh: (0.0, 0.98661),
    nn.Softsign: (0.0, 0.83568),
    nn.Hardsigmoid: (0.5, 0.49999),
}


def is_relu(module: nn.Module) -> bool:
    """Return True if a unit of this activation is off where its output is 0; a ``forward`` of the user's may differ."""
    return runs_forward_of(module, _RELUS)


def saturation_of(module: nn.Module) -> tuple[float, float] | None:
    """Where a bounded activation is flat, as centre and distance of its output; None for any other module."""
    return next((flat for kind, flat in _SATURATION.items() if runs_forward_of(module, [kind])), None)


def saturated_share(saturation: tuple[float, float], output: Tensor) -> Tensor:
    """Share of the outputs that lie where the activation is flat.

    Example:
        >>> saturated_share(saturation_of(nn.Tanh()), torch.tensor([0.1, -0.999, 0.5, 1.0]))
        tensor(0.5000)
    """
    centre, distance = saturation
    return (output.float() - centre).abs_().gt_(distance).mean()


def peaks_of(output: Tensor) -> tuple[Tensor, int] | None:
    """Return the largest output of each unit, and the number of samples; None where there are no units, or no samples.

    A unit is a channel of an image (4 or 5 dimensions), else an entry of the last dimension.

    Example:
        >>> peaks_of(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        (tensor([3., 0.]), 2)
    """
    output, dimensions = output.detach(), output.dim()
    if dimensions < 2 or not output.numel():  # an expert that gets no token
        return None
    if dimensions == 2:
        peak = output.amax(0)
    else:
        peak = output.amax((0, *range(2, dimensions))) if dimensions > 3 else output.flatten(0, -2).amax(0)
    return peak, output.numel() // peak.numel()


class UnitActivity:
    """Which units of the ReLUs were active at all, over at least 100 samples.

    With smaller batches the samples of several measured steps are put together, as a unit that is off for eight samples
    is not dead. Layers of fewer than eight units are left out.

    Example:
        >>> activity = UnitActivity()
        >>> activity.add("relu", *peaks_of(torch.relu(torch.tensor([[1.0, -1.0] * 4])).expand(100, 8)))
        >>> activity.dead_shares()
        [(('relu',), tensor([0.5000], dtype=torch.float64))]
    """

    def __init__(self) -> None:
        self._peaks: dict[str, tuple[Tensor, int]] = {}
        self._known: list[tuple[tuple[str, ...], Tensor]] = []

    def add(self, layer: str, peak: Tensor, samples: int) -> None:
        """Add the largest output of each unit of a ReLU, over so many samples."""
        before = self._peaks.get(layer)
        if before is not None and before[0].shape == peak.shape:
            peak, samples = torch.maximum(before[0].to(peak), peak), before[1] + samples
        self._peaks[layer] = (peak, samples)

    def take(self) -> dict[str, tuple[Tensor, int]]:
        """Hand over what was seen: layer -> largest output of each unit, and the number of samples."""
        peaks, self._peaks = self._peaks, {}
        return peaks

    def dead_shares(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """Layers and the shares of their units that never fired when enough was last seen; later ones hold."""
        enough = {layer: samples >= ENOUGH_SAMPLES for layer, (_, samples) in self._peaks.items()}
        ready = [layer for layer, is_so in enough.items() if is_so and self._peaks[layer][0].numel() >= ENOUGH_UNITS]
        alike: dict[tuple[torch.Size, torch.device, torch.dtype], list[str]] = {}
        for layer in ready:
            peak = self._peaks[layer][0]
            alike.setdefault((peak.shape, peak.device, peak.dtype), []).append(layer)
        for layers in map(tuple, alike.values()):
            shares = (torch.stack([self._peaks.pop(layer)[0] for layer in layers]) <= 0).double().mean(1)
            kept = [known for known in self._known if known[0] != layers and not set(known[0]) <= set(layers)]
            self._known = [*kept, (layers, shares)]
        return self._known

    def state_dict(self) -> dict[str, Any]:
        """Which units have fired so far, and the shares that hold, for a checkpoint; waits for the device."""
        fired = {layer: [(peak > 0).tolist(), samples] for layer, (peak, samples) in self._peaks.items()}
        return {"fired": fired, "known": [[list(layers), shares.tolist()] for layers, shares in self._known]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        fired, known = state.get("fired", {}), state.get("known", [])
        self._peaks = {layer: (torch.tensor(units).float(), samples) for layer, (units, samples) in fired.items()}
        self._known = [(tuple(layers), torch.tensor(shares, dtype=torch.float64)) for layers, shares in known]


Flags = npt.NDArray[np.bool_]
Peaks = Mapping[int, tuple[Tensor, int]]


def add_units(terms: SumLayout, peaks: Peaks, rows: Rows, scalars: DeviceScalars) -> None:
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
