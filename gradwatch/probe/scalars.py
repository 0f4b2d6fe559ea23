"""Scalars that wait on the device: each gets a slot number, and all go to the host in one transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch.probe.norms import batches, l2_norm_on_host, l2_norms, stored_values
from gradwatch.probe.transfer import Transfer
from gradwatch.records import Array


class DeviceScalars:
    """Collects the numbers of one measured step without reading any.

    On a CPU a norm is taken at once, while the tensor is in the processor's cache. Elsewhere norms are computed in
    small fused batches, so that no tensor is held for longer than until ``max_tensors`` others have come, or
    ``max_elements`` entries.

    Attributes:
        count: how many slots were given out.

    Example:
        >>> scalars = DeviceScalars()
        >>> slot = scalars.norm(torch.tensor([3.0, 4.0]))
        >>> float(scalars.to_host()[slot])
        5.0
    """

    def __init__(self, max_tensors: int = 16, max_elements: int = 1 << 21) -> None:
        self.count = 0
        self._max_tensors = max_tensors
        self._max_elements = max_elements
        self._waiting: list[Tensor] = []
        self._waiting_slots: list[int] = []
        self._elements = 0
        self._chunks: list[tuple[Tensor, Sequence[int]]] = []
        self._on_host: dict[int, float] = {}

    def norm(self, tensor: Tensor) -> int:
        """Ask for the L2 norm of a tensor that nobody changes; returns its slot."""
        slot = self.count
        self.count = slot + 1
        if tensor.is_cpu:
            self._on_host[slot] = l2_norm_on_host(stored_values(tensor))
            return slot
        self._waiting.append(stored_values(tensor))
        self._waiting_slots.append(slot)
        self._elements += tensor.numel()
        if len(self._waiting) >= self._max_tensors or self._elements >= self._max_elements:
            self._flush()
        return slot

    def values(self, chunk: Tensor) -> range:
        """Keep a vector of finished numbers; returns their slots."""
        slots = range(self.count, self.count + chunk.numel())
        self._chunks.append((chunk.double() if chunk.device.type != "mps" else chunk.float(), slots))
        self.count = slots.stop
        return slots

    def many(self, numbers: Sequence[Tensor]) -> list[int]:
        """Keep single numbers, with one stack for each device and dtype among them; returns their slots."""
        slots = [0] * len(numbers)
        for positions, batch in batches(numbers):
            for position, slot in zip(positions, self.values(torch.stack(batch)), strict=True):
                slots[position] = slot
        return slots

    def _flush(self) -> None:
        for positions, batch in batches(self._waiting):
            self._chunks.append((l2_norms(batch), [self._waiting_slots[position] for position in positions]))
        self._waiting, self._waiting_slots, self._elements = [], [], 0
        if self._on_host:
            self._chunks.append((torch.tensor([*self._on_host.values()], dtype=torch.float64), [*self._on_host]))
            self._on_host = {}

    def on_device(self, device: torch.device) -> tuple[Tensor, npt.NDArray[np.intp]]:
        """All numbers on one device, and the place of each slot among them; empty afterwards."""
        self._flush()
        places = np.empty(self.count, np.intp)
        order = [np.asarray(slots, np.intp) for _, slots in self._chunks]
        places[np.concatenate(order) if order else []] = np.arange(sum(map(len, order)))
        chunks = [chunk.to(device, non_blocking=True) for chunk, _ in self._chunks]
        self._chunks.clear()
        return torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.float64, device=device), places

    def send(self) -> Transfer:
        """Start the one transfer of a measured step (one a device), and keep nothing."""
        self._flush()
        transfer = Transfer(self.count, self._chunks)
        self._chunks = []
        return transfer

    def to_host(self) -> Array:
        """All numbers by slot, waited for; ``nan`` becomes ``inf``."""
        return self.send().numbers()
