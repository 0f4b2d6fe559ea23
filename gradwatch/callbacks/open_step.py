"""The optimizer step that is under way, over the batches it accumulates and the optimizers it steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.probe.stepping import Stepping, scale_on_device, unscales_itself
from gradwatch.watch import Watcher


@dataclass
class OpenStep:
    """What is known of a step so far.

    Attributes:
        was_read: an optimizer is about to step, or has: the step ends with this batch.
        batches: how many have ended in it.
        loss: sum of the batches' losses, each as a share of the step, on the device.
        loss_scale: what the loss was multiplied by, on the device; None without a loss scaler.

    Example:
        >>> import torch
        >>> step = OpenStep()
        >>> for loss in (0.25, 0.5):
        ...     step.add_loss({"loss": torch.tensor(loss)})
        >>> step.loss
        tensor(0.7500)
    """

    was_read: bool = False
    batches: int = 0
    loss: Tensor | None = None
    loss_scale: Tensor | None = None
    _stepping: Stepping = field(default_factory=Stepping)

    @property
    def skipped(self) -> bool | Tensor:
        """Whether a loss scaler left out an optimizer's step; on the device where only the optimizer knows."""
        return self._stepping.skipped if self.loss_scale is not None else False

    def add_loss(self, outputs: Any) -> None:
        """Take in what ``training_step`` gave, if there is a loss in it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
            self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def read(self, watcher: Watcher, optimizer: Optimizer, scaler: Any) -> None:
        """Have the gradients of an optimizer read that is about to step, and again when it has.

        Args:
            watcher: reads them.
            optimizer: its gradients are accumulated and not yet clipped.
            scaler: the loss scaler, if there is one; it has unscaled them, unless the optimizer does.
        """
        self.was_read = True
        unscales = scaler is not None and unscales_itself(optimizer)
        watcher.read(optimizer, scale_on_device(scaler, optimizer) if unscales else None)
        if watcher.norms:
            self._stepping.expect(optimizer, watcher.read_again, early=unscales)
            self.loss_scale = None if scaler is None else scale_on_device(scaler, optimizer)

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        self._stepping.close()
