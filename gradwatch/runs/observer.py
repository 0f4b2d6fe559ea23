"""What may look on at a short training."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Observer(Protocol):
    """Looks at the copy that is trained, never at the original."""

    def listen(self, module: nn.Module) -> None:
        """Once, before the first step."""

    def before_backward(self, loss: Tensor) -> None:
        """With each loss."""

    def after_backward(self, module: nn.Module) -> None:
        """With the gradients of each step."""


class Nobody:
    """Looks at nothing.

    Example:
        >>> Nobody().listen(nn.Linear(1, 1))
    """

    def listen(self, module: nn.Module) -> None:
        """Nothing."""

    def before_backward(self, loss: Tensor) -> None:
        """Nothing."""

    def after_backward(self, module: nn.Module) -> None:
        """Nothing."""
