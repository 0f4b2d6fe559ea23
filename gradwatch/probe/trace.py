"""The loss (and total norm) of every step between two measured ones, kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from gradwatch.probe.scalars import DeviceScalars

_CHUNK = 1024


class Trace:
    """A growing row of device scalars: an unmeasured step costs one list append.

    Every ``1024`` steps the scalars become one vector, so that a long gap costs 4 bytes a step.

    Example:
        >>> trace, scalars = Trace(), DeviceScalars()
        >>> trace.append(3, torch.tensor(0.5)); trace.append(4, torch.tensor(0.25))
        >>> steps, slots = trace.drain(scalars)
        >>> steps, scalars.to_host()[slots]
        ([3, 4], array([0.5 , 0.25]))
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._steps: list[int] = []
        self._recent: list[Tensor] = []
        self._packed: list[Tensor] = []

    def append(self, step: int, value: Tensor) -> None:
        """Keep a scalar; it may not be changed afterwards."""
        self._steps.append(step)
        self._recent.append(value)
        if len(self._recent) == _CHUNK:
            self._pack()

    def _pack(self) -> None:
        if self._recent:
            self._packed.append(torch.stack([value.detach().reshape(()) for value in self._recent]))
            self._recent = []

    def drain(self, scalars: DeviceScalars) -> tuple[list[int], list[int]]:
        """Hand all over to ``scalars`` and start anew; returns the steps and their slots."""
        self._pack()
        slots = [slot for chunk in self._packed for slot in scalars.values(chunk)]
        steps = self._steps
        self.clear()
        return steps, slots
