"""One optimizer step of a fit, from its first batch to the end of its last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.pipeline.optimizer_step import Stepping, scale_on_device
from gradwatch.pipeline.watcher import Watcher
from gradwatch.torch_internals import unscales_itself


@dataclass
class StepInProgress:
    """One optimizer step, over the batches it accumulates and the optimizers that step in it.

    Attributes:
        was_read: True once an optimizer's gradients were read: the step ends with this batch.
        batches: number of batches that have ended in it.
        loss: sum of the batches' losses, each as a share of the step, on the device.
        loss_scale: factor on the loss, on the device; None without a loss scaler.
        stranger: an optimizer that stepped, and that holds no parameter of the module.
    """

    was_read: bool = False
    batches: int = 0
    loss: Tensor | None = None
    loss_scale: Tensor | None = None
    stranger: Optimizer | None = None
    _stepping: Stepping | None = None  # made at a step of which something is read

    @property
    def skipped(self) -> bool | Tensor:
        """True if a loss scaler skipped an optimizer's step; on the device where only the optimizer knows."""
        return self._stepping.skipped if self._stepping is not None and self.loss_scale is not None else False

    def add_loss(self, outputs: Any) -> None:
        """Add the loss in the result of ``training_step``, if there is one."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
            loss = loss.detach() if loss.requires_grad else loss
            self.loss = loss if self.loss is None else self.loss + loss

    def read(self, watcher: Watcher, optimizer: Optimizer, scaler: Any) -> bool:
        """Let a watcher read an optimizer's gradients now, just before its step, and again just after.

        Return True if there is something to read.

        The gradients are accumulated and not yet clipped. A loss scaler has unscaled them, or the optimizer will.
        """
        self.was_read = True
        unscales = scaler is not None and unscales_itself(optimizer)
        watcher.read(optimizer, scale_on_device(scaler, optimizer) if unscales else None)
        if not watcher.norms:
            return False
        self._stepping = self._stepping or Stepping()
        self._stepping.expect(optimizer, watcher.read_again, watcher.measure_updates, early=unscales)
        self.loss_scale = None if scaler is None else scale_on_device(scaler, optimizer)
        return True

    @staticmethod
    def has_gradients(watcher: Watcher) -> bool:
        """Return True if gradients came in this step, as far as that is known."""
        return watcher.has_seen_gradients or not watcher.is_measuring

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        if self._stepping is not None:
            self._stepping.close()
