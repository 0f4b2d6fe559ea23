"""The loss (and total norm) of every step between two measured ones, kept on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwatch.probe.scalars import DeviceScalars
from gradwatch.records import Snapshot

_CHUNK = 1024
SKIPPED = 0.0  # stands for the total norm of a step that only the device knows to be left out


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
            home = self._recent[0].device  # a loss may have been given as a number
            self._packed.append(torch.stack([value.detach().reshape(()).to(home) for value in self._recent]))
            self._recent = []

    def drain(self, scalars: DeviceScalars) -> tuple[list[int], list[int]]:
        """Hand all over to ``scalars`` and start anew; returns the steps and their slots."""
        self._pack()
        slots = [slot for chunk in self._packed for slot in scalars.values(chunk)]
        steps = self._steps
        self.clear()
        return steps, slots

    def state_dict(self) -> dict[str, Any]:
        """Steps and values, for a checkpoint; waits for the device."""
        self._pack()
        return {"steps": list(self._steps), "values": [value for chunk in self._packed for value in chunk.tolist()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._steps, self._recent = list(state["steps"]), []
        self._packed = [torch.tensor(state["values"], dtype=torch.float64)] if state["values"] else []


class Traces:
    """The traces of the loss and of the total gradient norm.

    Example:
        >>> traces = Traces()
        >>> traces.append(0, 0.5, [])
        >>> traces.state_dict()["loss"]
        {'steps': [0], 'values': [0.5]}
    """

    def __init__(self) -> None:
        self._loss, self._total = Trace(), Trace()

    def append(
        self, step: int, loss: Tensor | float | None, norms: Sequence[Tensor], skipped: bool | Tensor = False
    ) -> None:
        """Keep what is known of a step: its loss, and the total norms of its optimizers, all on the device."""
        value = None if loss is None else torch.as_tensor(loss).detach()
        if value is not None and value.numel() == 1 and not value.is_complex() and not value.is_meta:
            self._loss.append(step, value)
        if norms and skipped is not True:  # a loss scaler's search is no trouble
            total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
            if isinstance(skipped, Tensor):
                total = torch.where(skipped.to(total.device, non_blocking=True) > 0, SKIPPED, total)
            self._total.append(step, total)

    def drain(self, scalars: DeviceScalars) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
        """Hand all over; returns steps and slots of the losses and of the total norms (``SKIPPED``: left out)."""
        return self._loss.drain(scalars), self._total.drain(scalars)

    def rest(self) -> Snapshot:
        """The losses since the last measured step, as a Snapshot without layers; waits for the device.

        Example:
            >>> traces = Traces()
            >>> traces.append(8, float("nan"), [])
            >>> traces.rest().trace_loss
            array([inf])
        """
        kept = self._loss.state_dict()
        steps, losses = np.array(kept["steps"], np.int64), np.array(kept["values"], np.float64)
        losses = np.where(np.isnan(losses), np.inf, losses)
        blank = np.full(len(steps), np.nan)
        latest = int(steps[-1]) if len(steps) else 0
        return Snapshot(latest, (), trace_step=steps, trace_loss=losses, trace_total_norm=blank)

    def leave_device(self) -> None:
        """Bring what waits there to the host; waits for it."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Both, for a checkpoint."""
        return {"loss": self._loss.state_dict(), "total": self._total.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._loss.load_state_dict(state["loss"])
        self._total.load_state_dict(state["total"])
