"""Measured steps whose numbers are still on their way to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import distributed

from gradwatch.probe.transfer import Transfer
from gradwatch.records import Array, Snapshot

_STEPS_LATE = 2  # a device that is two steps behind its host still has a step to work on while the host waits


@dataclass(frozen=True)
class Pending:
    """A measured step: its numbers, sent off, and how a Snapshot is made of them.

    Attributes:
        step: index of the optimizer step.
        transfer: the numbers by slot.
        build: makes the Snapshot of them; None where no process had a gradient.
    """

    step: int
    transfer: Transfer
    build: Callable[[Array], Snapshot | None]

    def snapshot(self) -> Snapshot | None:
        """The Snapshot, if there is one; waits until its numbers have arrived."""
        return self.build(self.transfer.numbers())


class Arrivals:
    """Hands out Snapshots in the order of their steps, once their numbers are there.

    On a CPU that is at once. A CUDA device is asked, and never waited for. Where several processes train together, all
    have to take a Snapshot in at the same step, or they would act on it at different ones: whatever a device says, it
    is the end of the second step after, by which it has hardly ever to be waited for.

    Example:
        >>> import torch
        >>> arrivals = Arrivals()
        >>> arrivals.add(Pending(7, Transfer(1, [(torch.ones(1), [0])]), lambda values: Snapshot(7, ())))
        >>> [snapshot.step for snapshot in arrivals.take(7)]
        [7]
    """

    def __init__(self) -> None:
        self._pending: deque[Pending] = deque()

    def add(self, pending: Pending) -> None:
        """Queue a measured step."""
        self._pending.append(pending)

    def take(self, step: int) -> Iterator[Snapshot]:
        """What has arrived by the end of a step, without waiting."""
        while self._pending and _is_due(self._pending[0], step):
            yield from _there_is(self._pending.popleft().snapshot())

    def wait(self) -> Iterator[Snapshot]:
        """All there is, waited for."""
        while self._pending:
            yield from _there_is(self._pending.popleft().snapshot())


def _there_is(snapshot: Snapshot | None) -> list[Snapshot]:
    return [] if snapshot is None else [snapshot]


def _is_due(pending: Pending, step: int) -> bool:
    if not pending.transfer.is_deferred:
        return True
    if _is_alone():
        return pending.transfer.has_arrived
    return step >= pending.step + _STEPS_LATE


def _is_alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
