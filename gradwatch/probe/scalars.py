"""Scalars of a measured step: collected on the device, sent to the host in one transfer, read later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwatch.probe.norms import batches, l2_norms, norm_on_host, stored_values
from gradwatch.records import Array, Snapshot


class Copy:
    """One vector on its way to the host.

    From a CUDA device it is copied into pinned memory without waiting: an event tells when it has arrived. From any
    other device the copy is waited for; on a CPU there is no copy.

    Attributes:
        is_deferred: the vector may arrive later than it was sent.
    """

    is_deferred = False

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
        """Return True if the numbers can be read without waiting."""
        return self._event is None or bool(self._event.query())

    def numbers(self) -> Array:
        """Return the numbers; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()


def positions_of(slots: Sequence[int]) -> npt.NDArray[np.intp]:
    """Return slots as an array; NumPy reads a range entry by entry, which costs 60 ns each."""
    return np.arange(slots.start, slots.stop) if isinstance(slots, range) else np.asarray(slots, np.intp)


class Transfer:
    """All numbers of one measured step on their way, in chunks with their slots: one copy for each device.

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
            order = np.concatenate([positions_of(slots) for _, slots in here])
            self._copies.append((order, Copy(torch.cat([chunk for chunk, _ in here]))))

    @property
    def is_deferred(self) -> bool:
        """Return True if any of it may arrive later than it was sent."""
        return any(copy.is_deferred for _, copy in self._copies)

    @property
    def has_arrived(self) -> bool:
        """Return True if all numbers can be read without waiting."""
        return all(copy.has_arrived for _, copy in self._copies)

    def numbers(self) -> Array:
        """Return all numbers by slot; waits for them. A slot without a number holds ``nan``."""
        # In a Snapshot NaN means "not measured". So a number that is NaN becomes Inf: both mean non-finite.
        result = np.full(self._count, np.nan)
        for order, copy in self._copies:
            numbers = copy.numbers()
            result[order] = np.where(np.isnan(numbers), np.inf, numbers)
        return result


class DeviceScalars:
    """Collects the numbers of one measured step without reading any.

    Each number gets a *slot*: the position at which it will be found once all numbers are on the host. Whoever adds a
    number keeps its slot, and computes with slots until the one transfer has arrived.

    On a CPU a norm is computed at once, while the tensor is in the processor's cache. Elsewhere norms are computed in
    small fused batches: a tensor is held until ``max_tensors`` are waiting, or ``max_elements`` entries.

    Attributes:
        count: number of slots so far.

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
        self._single: dict[int, Tensor] = {}
        self._on_host: dict[int, float] = {}

    def norm(self, tensor: Tensor) -> int:
        """Add the L2 norm of a tensor that is not changed later; return its slot."""
        slot = self.count
        self.count = slot + 1
        if tensor.is_cpu:
            self._on_host[slot] = norm_on_host(stored_values(tensor))
            return slot
        self._waiting.append(stored_values(tensor))
        self._waiting_slots.append(slot)
        self._elements += tensor.numel()
        if len(self._waiting) >= self._max_tensors or self._elements >= self._max_elements:
            self._flush()
        return slot

    def values(self, chunk: Tensor) -> range:
        """Add a vector of numbers; return their slots."""
        slots = range(self.count, self.count + chunk.numel())
        self._chunks.append((_wide(chunk), slots))
        self.count = slots.stop
        return slots

    def norm_now(self, values: Tensor) -> int:
        """Add the L2 norm of stored values that may change later; return its slot."""
        if values.is_cpu:
            slot = self.count
            self.count = slot + 1
            self._on_host[slot] = norm_on_host(values)
            return slot
        return self.one(torch.linalg.vector_norm(values, dtype=torch.float32 if values.itemsize < 4 else None))

    def one(self, number: Tensor) -> int:
        """Add a single number; return its slot."""
        slot = self.count
        self.count = slot + 1
        self._single[slot] = number
        return slot

    def _flush(self) -> None:
        for positions, batch in batches(self._waiting):
            self._chunks.append((l2_norms(batch), [self._waiting_slots[position] for position in positions]))
        self._waiting, self._waiting_slots, self._elements = [], [], 0
        slots = list(self._single)
        for positions, batch in batches([*self._single.values()]):
            self._chunks.append((_wide(torch.stack(batch)), [slots[position] for position in positions]))
        self._single = {}
        if self._on_host:
            self._chunks.append((torch.tensor([*self._on_host.values()], dtype=torch.float64), [*self._on_host]))
            self._on_host = {}

    def on_device(self, device: torch.device) -> tuple[Tensor, npt.NDArray[np.intp]]:
        """Return all numbers on one device, and the place of each slot among them; empty afterwards."""
        self._flush()
        places = np.empty(self.count, np.intp)
        order = [positions_of(slots) for _, slots in self._chunks]
        places[np.concatenate(order) if order else []] = np.arange(sum(map(len, order)))
        chunks = [chunk.to(device, non_blocking=True) for chunk, _ in self._chunks]
        self._chunks.clear()
        return torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.float64, device=device), places

    def send(self) -> Transfer:
        """Start the one transfer of a measured step (one a device); empty afterwards."""
        self._flush()
        transfer = Transfer(self.count, self._chunks)
        self._chunks = []
        return transfer

    def to_host(self) -> Array:
        """Return all numbers by slot; waits for them. ``nan`` becomes ``inf``."""
        return self.send().numbers()


def _wide(numbers: Tensor) -> Tensor:
    return numbers.double() if numbers.device.type != "mps" else numbers.float()


@dataclass(frozen=True)
class Pending:
    """A measured step whose numbers are on their way, and the function that makes a Snapshot of them."""

    step: int
    transfer: Transfer
    build: Callable[[Array], Snapshot | None]

    def snapshot(self) -> Snapshot | None:
        """Return the Snapshot, if there is one; waits until its numbers have arrived."""
        return self.build(self.transfer.numbers())
