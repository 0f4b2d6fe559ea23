"""The optimizer step that is under way, over the batches it accumulates and the optimizers it steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


@dataclass
class OpenStep:
    """What is known of a step so far.

    Attributes:
        was_read: an optimizer is about to step, or has: the step ends with this batch.
        has_stepped: an optimizer has stepped.
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
    has_stepped: bool = False
    loss: Tensor | None = None
    loss_scale: Tensor | None = None
    _hooks: list[RemovableHandle] = field(default_factory=list)

    @property
    def was_skipped(self) -> bool:
        """Whether a loss scaler left out the optimizer's step."""
        return self.loss_scale is not None and not self.has_stepped

    def add_loss(self, outputs: Any) -> None:
        """Take in what ``training_step`` gave, if there is a loss in it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def when_stepped(self, optimizer: Optimizer, then: Callable[[], None]) -> None:
        """Call ``then`` right after the optimizer has stepped."""

        def after(*_: object) -> None:
            self.has_stepped = True
            then()

        self._hooks.append(optimizer.register_step_post_hook(after))

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
