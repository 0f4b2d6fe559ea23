"""Scalars that wait on the device: each gets a slot number, and all go to the host in one transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradwatch.probe.norms import l2_norms, stored_values
from gradwatch.records import Array

_Key = tuple[torch.device, torch.dtype]


class DeviceScalars:
    """Collects the numbers of one measured step without reading any.

    Norms are computed in small fused batches, so that no tensor is held for longer than until ``max_tensors`` others of
    its kind have come, or ``max_elements`` entries.

    Example:
        >>> scalars = DeviceScalars()
        >>> slot = scalars.norm(torch.tensor([3.0, 4.0]))
        >>> scalars.to_host()[slot]
        np.float64(5.0)
    """

    def __init__(self, max_tensors: int = 32, max_elements: int = 1 << 21) -> None:
        self._max_tensors = max_tensors
        self._max_elements = max_elements
        self._waiting: dict[_Key, tuple[list[Tensor], list[int]]] = {}
        self._elements = 0
        self._count = 0
        self._chunks: list[tuple[Tensor, Sequence[int]]] = []

    def norm(self, tensor: Tensor) -> int:
        """Ask for the L2 norm of a tensor that nobody changes; returns its slot."""
        values = stored_values(tensor)
        tensors, slots = self._waiting.setdefault((values.device, values.dtype), ([], []))
        tensors.append(values)
        slots.append(self._count)
        self._count += 1
        self._elements += values.numel()
        if len(tensors) >= self._max_tensors or self._elements >= self._max_elements:
            self._flush()
        return self._count - 1

    def values(self, chunk: Tensor) -> range:
        """Keep a vector of finished numbers; returns their slots."""
        slots = range(self._count, self._count + chunk.numel())
        self._chunks.append((chunk.double() if chunk.device.type != "mps" else chunk.float(), slots))
        self._count = slots.stop
        return slots

    def _flush(self) -> None:
        for tensors, slots in self._waiting.values():
            if tensors:
                self._chunks.append((l2_norms(tensors), slots))
        self._waiting.clear()
        self._elements = 0

    def to_host(self) -> Array:
        """All numbers by slot; ``nan`` becomes ``inf``. The one transfer of a measured step (one a device)."""
        self._flush()
        result = np.full(self._count, np.nan)
        for device in {chunk.device for chunk, _ in self._chunks}:
            here = [(chunk, slots) for chunk, slots in self._chunks if chunk.device == device]
            order = np.concatenate([np.fromiter(slots, np.intp) for _, slots in here])
            numbers = torch.cat([chunk for chunk, _ in here]).cpu().numpy()
            result[order] = np.where(np.isnan(numbers), np.inf, numbers)
        self._chunks.clear()
        return result
