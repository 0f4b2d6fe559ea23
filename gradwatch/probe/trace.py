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
SKIPPED = 0.0  # total norm of a step that was skipped, where only the device knows that
StepSlots = tuple[Sequence[int], Sequence[int]]  # steps, and the slots of their numbers


class ScalarRow:
    """A growing row of device scalars: an unmeasured step costs one list append.

    Every ``1024`` steps the scalars become one vector, so that a long gap costs 4 bytes a step.

    Example:
        >>> row, scalars = ScalarRow(), DeviceScalars()
        >>> row.append(3, torch.tensor(0.5)); row.append(4, torch.tensor(0.25))
        >>> steps, slots = row.drain(scalars)
        >>> steps, scalars.to_host()[slots]
        ([3, 4], array([0.5 , 0.25]))
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
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
            home = self._recent[0].device  # a loss may be a number of the host at one step, and of a device at another
            self._packed.append(torch.stack([value.detach().reshape(()).to(home) for value in self._recent]))
            self._recent = []

    def drain(self, scalars: DeviceScalars) -> tuple[list[int], list[int]]:
        """Move all numbers to ``scalars``; return the steps and their slots."""
        self._pack()
        slots = [slot for chunk in self._packed for slot in scalars.values(chunk)]
        steps = self._steps
        self._clear()
        return steps, slots

    def state_dict(self) -> dict[str, Any]:
        """Return steps and values, for a checkpoint; waits for the device."""
        self._pack()
        return {"steps": list(self._steps), "values": [value for chunk in self._packed for value in chunk.tolist()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._steps, self._recent = list(state["steps"]), []
        self._packed = [torch.tensor(state["values"], dtype=torch.float64)] if state["values"] else []


class Trace:
    """The loss and the total gradient norm of each step since the last measured one."""

    def __init__(self) -> None:
        self._loss, self._total = ScalarRow(), ScalarRow()

    def append(
        self, step: int, loss: Tensor | float | None, norms: Sequence[Tensor], skipped: bool | Tensor = False
    ) -> None:
        """Keep what is known of a step: its loss, and the total norms of its optimizers, all on the device."""
        value = None if loss is None else torch.as_tensor(loss).detach()
        if value is not None and value.numel() == 1 and not value.is_complex() and not value.is_meta:
            self._loss.append(step, value)
        if norms and skipped is not True:  # a loss scaler that looks for its scale skips steps: that is no problem
            total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
            if isinstance(skipped, Tensor):
                total = torch.where(skipped.to(total.device, non_blocking=True) > 0, SKIPPED, total)
            self._total.append(step, total)

    def drain(self, scalars: DeviceScalars) -> tuple[StepSlots, StepSlots]:
        """Move all numbers to ``scalars``; return steps and slots of the losses and of the total norms."""
        return self._loss.drain(scalars), self._total.drain(scalars)

    def losses(self) -> Snapshot:
        """Return the losses since the last measured step, as a Snapshot without layers; waits for the device.

        Example:
            >>> trace = Trace()
            >>> trace.append(8, float("nan"), [])
            >>> trace.losses().trace_loss
            array([inf])
        """
        kept = self._loss.state_dict()
        steps, losses = np.array(kept["steps"], np.int64), np.array(kept["values"], np.float64)
        losses = np.where(np.isnan(losses), np.inf, losses)  # as Transfer does: NaN is for what is missing
        latest = int(steps[-1]) if len(steps) else 0
        return Snapshot(latest, (), trace_step=steps, trace_loss=losses, trace_total_norm=np.full(len(steps), np.nan))

    def leave_device(self) -> None:
        """Bring all numbers to the host; waits for the device."""
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return both rows, for a checkpoint; waits for the device."""
        return {"loss": self._loss.state_dict(), "total": self._total.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._loss.load_state_dict(state["loss"])
        self._total.load_state_dict(state["total"])
