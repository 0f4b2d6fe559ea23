"""Numbers on their way from a device to the host, which goes on working meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwatch.records import Array


class Copy:
    """One vector on its way to the host.

    From a CUDA device it goes into pinned memory, in the device's own time: an event tells when it is there. From any
    other device the copy is waited for; on a CPU there is none.

    Example:
        >>> copy = Copy(torch.tensor([1.0, 2.0]))
        >>> copy.has_arrived, copy.numbers()
        (True, array([1., 2.], dtype=float32))
    """

    is_deferred = False
    """Whether it may arrive later than it was sent."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: Any = None
        if numbers.device.type == "cuda":
            self.is_deferred = True
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._host = numbers.cpu()

    @property
    def has_arrived(self) -> bool:
        """Whether the numbers can be read without waiting; to ask takes no waiting either."""
        return self._event is None or bool(self._event.query())

    def numbers(self) -> Array:
        """The numbers; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        numbers: Array = self._host.numpy()
        return numbers


class Transfer:
    """All numbers of one measured step on their way: one copy for each device.

    Args:
        count: how many slots there are.
        chunks: vectors of numbers, each with the slots they belong to.

    Example:
        >>> transfer = Transfer(3, [(torch.tensor([5.0, float("nan")]), [2, 0])])
        >>> transfer.numbers()
        array([inf, nan,  5.])
    """

    def __init__(self, count: int, chunks: Sequence[tuple[Tensor, Sequence[int]]]) -> None:
        self._count = count
        self._copies: list[tuple[Array, Copy]] = []
        for device in {chunk.device for chunk, _ in chunks}:
            here = [(chunk, slots) for chunk, slots in chunks if chunk.device == device]
            order = np.concatenate([np.asarray(slots, np.intp) for _, slots in here])
            self._copies.append((order, Copy(torch.cat([chunk for chunk, _ in here]))))

    @property
    def is_deferred(self) -> bool:
        """Whether any of it may arrive later than it was sent."""
        return any(copy.is_deferred for _, copy in self._copies)

    @property
    def has_arrived(self) -> bool:
        """Whether all numbers can be read without waiting."""
        return all(copy.has_arrived for _, copy in self._copies)

    def numbers(self) -> Array:
        """All numbers by slot, ``nan`` made ``inf``; waits for them. A slot that was given no number holds ``nan``."""
        result = np.full(self._count, np.nan)
        for order, copy in self._copies:
            numbers = copy.numbers()
            result[order] = np.where(np.isnan(numbers), np.inf, numbers)
        return result
