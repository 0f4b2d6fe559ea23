"""Adding up a step's sums: in one process without communication, or over all ranks in one collective."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from gradwatch.probe.layers import named_parameters
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.replicas import Replicas
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import Indices, SumLayout, Sums
from gradwatch.records import Array


class SingleProcess:
    """Adds up a step's sums of one process, as :class:`AllRanks` does for several."""

    batches = sharing = 1
    place = 0
    replicas = Replicas(None, None)

    def check(self, names: Sequence[str]) -> None:
        """Do nothing: no other process could watch something else."""

    def room(self, wanted: Indices) -> Indices:
        """Return what is wanted."""
        return wanted

    def add_up(self, layout: SumLayout, scalars: DeviceScalars, wanted: Indices) -> Callable[[Array], Sums]:
        """Return the function that makes the sums of the numbers in ``scalars``, once these are on the host."""
        return lambda values: layout.split(layout.on_host(values))


class AllRanks:
    """Adds up a step's sums over all ranks, on the device of the model's parameters.

    The layout of the sums must be the same on all ranks before they are added up. But how many calls and units a layer
    has is known only after it has run, and another rank may have seen more. So the ranks agree on the largest numbers
    (the room) at the first measured step, and again after a step at which one of them had too little.

    Attributes:
        batches, sharing, place: those of the ranks.
        replicas: what several of them hold, to be compared.
    """

    def __init__(self, ranks: Ranks, model: nn.Module) -> None:
        self.batches, self.sharing, self.place = ranks.batches, ranks.sharing, ranks.place
        self._ranks, self._model = ranks, model
        self._names_checksum = 0
        self.replicas = Replicas(None, None)
        self._room = np.zeros(0, np.int64)
        self._is_short = True

    def check(self, names: Sequence[str]) -> None:
        """Make sure that all ranks watch the same layers and parameters; costs a collective when the names are new.

        Raises:
            ValueError: where they do not; on all ranks at once.
        """
        checksum = zlib.crc32("\n".join(names).encode()) + 1
        if checksum == self._names_checksum:
            return
        self._names_checksum, self._is_short = checksum, True
        # The largest of the negatives is the smallest: one MAX tells if all ranks have the same checksum.
        self.replicas = _replicas_of(self._model, self._ranks)
        tensors = zlib.crc32("\n".join(self.replicas.names).encode())
        largest = self._largest(np.array([checksum, -checksum, tensors, -tensors]))
        if largest[2] != -largest[3]:  # buffers may differ, and then are no cells that all ranks have
            self.replicas.switch_off()
        if largest[0] != -largest[1]:
            raise ValueError(
                f"this rank watches {len(names)} layers and parameters that are not those of the other ranks; expected "
                "the same model on all of them, as under DDP, FSDP and tensor parallelism"
            )

    def room(self, wanted: Indices) -> Indices:
        """Return the length that all ranks give each of several rows, for the lengths that this rank wants."""
        if len(self._room) != len(wanted):
            self._room = np.zeros(len(wanted), np.int64)
        if self._is_short:
            self._room = np.maximum(self._room, _rounded_up(self._largest(wanted)))
            self._is_short = False  # until the sums say otherwise
        return self._room

    def add_up(self, layout: SumLayout, scalars: DeviceScalars, wanted: Indices) -> Callable[[Array], Sums]:
        """Replace what is in ``scalars`` by the sums over all ranks: the one collective of a measured step.

        Returns:
            The function that makes the sums of the numbers in ``scalars``, once these are on the host. All ranks have
            to call it before the next measured step, since the sums tell whether to agree on the room again.
        """
        # A rank can't ask for more room alone, as the others would not take part. So it says so in the sums.
        layout.count("short", [0], float((wanted > self._room).any()))
        slots = scalars.values(self._ranks.add_up(layout.on_device(scalars, self._device)))

        def sums_of(values: Array) -> Sums:
            sums = layout.split(values[slots])
            self._is_short = bool(sums["short"][0])
            return sums

        return sums_of

    @property
    def _device(self) -> torch.device:
        return self._ranks.device(param for _, param, _ in named_parameters(self._model))

    def _largest(self, numbers: Indices) -> Indices:
        row = torch.from_numpy(np.asarray(numbers, np.int64)).to(self._device)
        return self._ranks.largest(row).cpu().numpy()


def _replicas_of(model: nn.Module, ranks: Ranks) -> Replicas:
    try:
        return Replicas(model, ranks)
    except Exception:  # the other ranks wait in a collective
        return Replicas(None, None)


def _rounded_up(numbers: Indices) -> Indices:
    """Return the next powers of two, so that a row which grows step by step seldom runs short."""
    powers = 2 ** np.ceil(np.log2(np.maximum(numbers, 1))).astype(np.int64)
    return np.where(numbers > 0, powers, 0)
