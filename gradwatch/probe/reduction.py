"""A process that trains alone: its sums are all there is."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradwatch.probe.call_log import CallLog
from gradwatch.probe.dead_units import SharedActivity, UnitActivity, add_units
from gradwatch.probe.modules import named_parameters
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import Indices, Rows, SumLayout, Sums
from gradwatch.records import Array


class SingleProcess:
    """Adds up a step's sums of one process; what :class:`~gradwatch.probe.reduction.AllRanks` does for several.

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
        self, terms: SumLayout, scalars: DeviceScalars, index: Mapping[str, int], rows: Rows, graph: CallLog
    ) -> None:
        """Add the shares of dead units."""
        latest: dict[int, int] = {}
        for layers, shares in self._activity.dead_shares():
            numbered = zip(layers, scalars.values(shares), strict=True)
            latest |= {index[layer]: slot for layer, slot in numbered if layer in index}  # a checkpoint may know others
        terms.add("dead", list(latest), list(latest.values()))
        terms.count("looked_at", list(latest))

    def add_up(self, terms: SumLayout, scalars: DeviceScalars, wanted: Indices) -> Callable[[Array], Sums]:
        """How the sums come from the numbers in ``scalars``, once these are on the host."""
        return lambda values: terms.split(terms.on_host(values))

    def dead_fraction(self, sums: Sums, rows: Rows) -> Array:
        """Shares of dead units by layer."""
        return np.where(sums["looked_at"] > 0, sums["dead"], np.nan)


class AllRanks:
    """Adds up a step's sums over all ranks.

    How many calls and units a layer has is not known before it has run, and another rank may have seen more. So the
    ranks agree on the largest numbers at the first measured step, and again after a step at which one of them was
    short of room.

    Args:
        ranks: the processes.
        activity: what the hooks saw of ReLUs.
        model: numbers are added up where its parameters are.

    Attributes:
        batches: how many batches the processes have.
    """

    def __init__(self, ranks: Ranks, activity: UnitActivity, model: nn.Module) -> None:
        self.batches = ranks.batches
        self._ranks, self._watched = ranks, model
        self._activity, self._shared = activity, SharedActivity()
        self._peaks: dict[int, tuple[Tensor, int]] = {}
        self._model = 0
        self._room = np.zeros(0, np.int64)
        self._is_short = True

    def check(self, names: Sequence[str]) -> None:
        """Make sure that all ranks watch the same layers and parameters; asks them only when the names are new.

        Raises:
            ValueError: where they do not; on all of them, as they ask each other.
        """
        model = zlib.crc32("\n".join(names).encode()) + 1
        if model == self._model:
            return
        self._model, self._is_short = model, True
        seen = self._largest(np.array([model, -model]))
        if seen[0] != -seen[1]:
            raise ValueError(
                f"this rank watches {len(names)} layers and parameters that are not those of the other ranks; expected "
                "the same model on all of them, as under DDP, FSDP and tensor parallelism"
            )

    def see(self, peaks: Iterable[tuple[str, Tensor, int]]) -> None:
        """Take in what ReLUs put out in the calls that count: layer, largest output of each unit, samples."""
        for peak in peaks:
            self._activity.add(*peak)

    def unit_counts(self, index: Mapping[str, int]) -> dict[int, int]:
        """Layer -> how many sums its units need."""
        self._peaks = {index[n]: peak for n, peak in self._activity.take().items() if n in index}
        return {layer: len(peak) * self._ranks.sharing for layer, (peak, _) in self._peaks.items()}

    def room(self, wanted: Indices) -> Indices:
        """For each of several rows the room that all ranks give it, for which this one wants so much."""
        if len(self._room) != len(wanted):
            self._room = np.zeros(len(wanted), np.int64)
        if self._is_short:
            self._room = np.maximum(self._room, _rounded_up(self._largest(wanted)))
            self._is_short = False  # until the sums say otherwise
        return self._room

    def add_activity(
        self, terms: SumLayout, scalars: DeviceScalars, index: Mapping[str, int], rows: Rows, graph: CallLog
    ) -> None:
        """Add which units fired. Processes that share a batch may hold different units of a layer, or the same."""
        cut = {index[layer] for layer in graph.cut_by_unit}
        add_units(terms, self._peaks, {layer: self._mine(row, layer in cut) for layer, row in rows.items()}, scalars)
        self._peaks = {}

    def _mine(self, row: slice, is_cut: bool) -> slice:
        room = (row.stop - row.start) // self._ranks.sharing
        start = row.start + (self._ranks.place * room if is_cut else 0)
        return slice(start, start + room)

    def add_up(self, terms: SumLayout, scalars: DeviceScalars, wanted: Indices) -> Callable[[Array], Sums]:
        """The one collective of a measured step: replaces what is in ``scalars`` by the sums over all ranks.

        Returns:
            How the sums come from the numbers in ``scalars``, once these are on the host. All ranks have to look at
            them before the next measured step, since from them they know whether to agree anew.
        """
        terms.count("short", [0], float((wanted > self._room).any()))
        slots = scalars.values(self._ranks.add_up(terms.on_device(scalars, self._device)))

        def take(values: Array) -> Sums:
            sums = terms.split(values[slots])
            self._is_short = bool(sums["short"][0])
            return sums

        return take

    def dead_fraction(self, sums: Sums, rows: Rows) -> Array:
        """Shares of dead units by layer."""
        return self._shared.take(sums, rows)

    @property
    def _device(self) -> torch.device:
        return self._ranks.device(param for _, param, _ in named_parameters(self._watched))

    def _largest(self, numbers: Indices) -> Indices:
        row = torch.from_numpy(np.asarray(numbers, np.int64)).to(self._device)
        return self._ranks.largest(row).cpu().numpy()


def _rounded_up(numbers: Indices) -> Indices:
    """Up to a power of two, so that rows which grow step by step seldom run short."""
    powers = 2 ** np.ceil(np.log2(np.maximum(numbers, 1))).astype(np.int64)
    return np.where(numbers > 0, powers, 0)
