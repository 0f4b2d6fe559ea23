"""Dead and saturated units, read from the outputs of activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import runs_forward_of
from gradwatch.probe.norms import batches
from gradwatch.probe.scalars import DeviceScalars, positions_of
from gradwatch.probe.sum_layout import Rows, SumLayout, Sums
from gradwatch.records import Array

Flags = npt.NDArray[np.bool_]
_RELUS = (nn.ReLU, nn.ReLU6)  # a unit at 0 is off; other rectifiers are off at other values
ENOUGH_UNITS = 8  # two dead units of four are no problem, and a gate may have no more than four
ENOUGH_SAMPLES = 100  # SageMaker Debugger calls a ReLU dead if it is active less than 1 % of the time

_LARGE, _PART = 1 << 16, 16  # entries of an output of which one sixteenth of the samples is read first

# Output beyond which the slope is under 2.7 % of the steepest, as (centre, distance): that is a Sigmoid's input beyond
# 5, the bound of DeepDiagnosis (Wardat et al., ICSE 2022), carried over to the other bounded activations by slope.
_SATURATION: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.5, 0.49331),
    nn.Tanh: (0.0, 0.98661),
    nn.Softsign: (0.0, 0.83568),
    nn.Hardsigmoid: (0.5, 0.49999),
}


def is_relu(module: nn.Module) -> bool:
    """Return True if a unit of this activation is off where its output is 0; a user's ``forward`` may differ."""
    return runs_forward_of(module, _RELUS)


def saturation_of(module: nn.Module) -> tuple[float, float] | None:
    """Return where a bounded activation is flat, as centre and distance of its output; None for other modules."""
    return next((flat for kind, flat in _SATURATION.items() if runs_forward_of(module, [kind])), None)


def saturated_share(saturation: tuple[float, float], output: Tensor) -> Tensor:
    """Return the share of the outputs at which the activation is flat."""
    centre, distance = saturation
    return (output.float() - centre).abs_().gt_(distance).mean()


def peaks_of(output: Tensor) -> tuple[Tensor, int] | None:
    """Return the largest output of each unit, and the number of samples; None where there are no units, or no samples.

    A unit is a channel of an image (4 or 5 dimensions), else an entry of the last dimension. Of a large output in the
    host's memory no more is read than shows that all units fire.

    Example:
        >>> peaks_of(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        (tensor([3., 0.]), 2)
    """
    output, dimensions = output.detach(), output.dim()
    if dimensions < 2 or not output.numel():  # an expert that gets no token
        return None
    few = len(output) // _PART
    if few and output.numel() > _LARGE and output.is_cpu:
        peak = _largest_by_unit(output[:few])
        if bool((peak > 0).all()):
            return peak, output.numel() // peak.numel()
    peak = _largest_by_unit(output)
    return peak, output.numel() // peak.numel()


def _largest_by_unit(output: Tensor) -> Tensor:
    dimensions = output.dim()
    if dimensions == 2:
        return output.amax(0)
    return output.amax((0, *range(2, dimensions))) if dimensions > 3 else output.flatten(0, -2).amax(0)


Peaks = dict[int, tuple[Tensor, int]]  # layer -> largest output of each unit, number of samples


def peaks_by_layer(calls: Iterable[tuple[int, Tensor, int]]) -> Peaks:
    """Join a step's calls of ReLUs by layer: its place, the largest output of each unit, and the number of samples.

    A call with another number of units than the one before it replaces that one: its units are others.

    Example:
        >>> peaks_by_layer([(0, torch.tensor([0.0, 1.0]), 32), (0, torch.tensor([2.0, 0.0]), 32)])
        {0: (tensor([2., 1.]), 64)}
    """
    peaks: Peaks = {}
    for layer, peak, samples in calls:
        before = peaks.get(layer)
        if before is not None and before[0].shape == peak.shape:
            peak, samples = torch.maximum(before[0].to(peak), peak), before[1] + samples
        peaks[layer] = peak, samples
    return peaks


def add_units(layout: SumLayout, peaks: Peaks, rows: Rows, scalars: DeviceScalars) -> None:
    """Add which units a step has, which fired, and over how many samples; ``rows`` may have fewer places than units."""
    layers = [layer for layer in peaks if layer in rows]
    layout.count("samples", layers, [peaks[layer][1] for layer in layers])
    for positions, batch in batches([peaks[layer][0] for layer in layers]):
        cells = [rows[layers[i]] for i in positions]
        starts, rooms = np.array([(row.start, row.stop - row.start) for row in cells]).T
        lengths = np.array([peak.numel() for peak in batch])
        if (lengths > rooms).any():
            batch = [peak[:room] for peak, room in zip(batch, rooms.tolist(), strict=True)]
            lengths = np.minimum(lengths, rooms)
        units = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        layout.count("units", units)
        # NaN counts as fired: the unit is not off, and the layer shows up as non-finite anyway.
        layout.add("fired", units, positions_of(scalars.values((torch.cat(batch) <= 0).logical_not_())))


class UnitActivity:
    """The units of the ReLUs that fired, in any process, over at least 100 samples.

    With smaller batches the samples of several measured steps are joined: a unit that is off for eight samples is not
    dead. Layers with fewer than eight units have no share.

    All of it is computed on the host from a step's sums, which are the same on all ranks. So the state of rank 0 is
    enough to resume all ranks. It lists the units in the order of the whole layer: a state of one process can be loaded
    by several, and the reverse. If the number of a layer's units differs then, the count starts again for that layer,
    and its last share holds until enough samples were seen.

    Example:
        >>> activity, rows = UnitActivity(), {0: slice(0, 8)}
        >>> step = {"samples": np.array([60.0]), "units": np.ones(8), "fired": np.arange(8) % 2.0}
        >>> [activity.dead_shares({"relu": 0}, rows, step).tolist() for _ in range(2)]
        [[nan], [0.5]]
    """

    def __init__(self) -> None:
        self._fired: dict[str, tuple[Flags, int]] = {}  # of layers with too few samples so far
        self._shares: dict[str, float] = {}

    def dead_shares(self, index: Mapping[str, int], rows: Rows, sums: Sums) -> Array:
        """Add a step's sums, and return the share of dead units by layer: that of the last 100 samples or more."""
        names, samples = list(index), sums["samples"].tolist()
        is_unit, has_fired = sums["units"] > 0, sums["fired"] > 0
        for layer, row in rows.items():
            if samples[layer]:
                # A row may have more cells than the layer has units, between and behind the parts of the processes.
                self._add(names[layer], has_fired[row][is_unit[row]], int(samples[layer]))
        # By name, as the layers of a resumed or changed model may be others.
        return np.array([self._shares.get(name, np.nan) for name in names], np.float64)

    def _add(self, layer: str, fired: Flags, samples: int) -> None:
        before = self._fired.pop(layer, None)
        if before is not None and len(before[0]) == len(fired):
            fired, samples = fired | before[0], samples + before[1]
        if samples < ENOUGH_SAMPLES:
            self._fired[layer] = fired, samples
        elif len(fired) >= ENOUGH_UNITS:
            self._shares[layer] = (len(fired) - np.count_nonzero(fired)) / len(fired)

    def state_dict(self) -> dict[str, Any]:
        """Return the units that have fired so far, and the shares that hold, for a checkpoint."""
        fired = {layer: [flags.tolist(), samples] for layer, (flags, samples) in self._fired.items()}
        return {"fired": fired, "known": [[list(self._shares), list(self._shares.values())]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        fired = state.get("fired", {})
        self._fired = {layer: (np.array(flags, np.bool_), int(samples)) for layer, (flags, samples) in fired.items()}
        known = state.get("known", [])  # groups of layers: older states have several
        self._shares = {layer: share for layers, shares in known for layer, share in zip(layers, shares, strict=True)}
