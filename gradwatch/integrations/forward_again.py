"""The last call of a model, which can be made again to look at each of its operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class ForwardAgain:
    """Keeps the inputs of a model's last call with gradients, for the length of a step.

    Such a loop gives no function that computes its loss again. But a model of Hugging Face's computes the loss
    itself where it is given labels, and most NaN are made in the forward pass of the model anyway.

    Args:
        model: is called once a batch.

    Attributes:
        inputs: positional and named arguments of the call; None before it.

    Example:
        >>> again = ForwardAgain(nn.Linear(2, 1))
        >>> model, compute = again() if again.inputs else (None, None)
        >>> model is None
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._model = weakref.ref(model)
        self._hook: RemovableHandle | None = model.register_forward_pre_hook(_Keep(self), with_kwargs=True)

    def __call__(self) -> tuple[nn.Module, Callable[[], object]]:
        """Return the model, and a function that calls it again. Call it in a fork.

        Raises:
            ValueError: when the model was not called in this step, or is gone.
        """
        model, inputs = self._model(), self.inputs
        if model is None or inputs is None:
            raise ValueError("the model was not called in this step")
        return model, lambda: model(*inputs[0], **inputs[1])

    def forget(self) -> None:
        """Drop the inputs, at the end of a step."""
        self.inputs = None

    def close(self) -> None:
        """Take the hook off the model."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self.inputs = None, None


class _Keep:
    """The hook: a copy of the model has one that keeps nothing."""

    def __init__(self, again: ForwardAgain | None) -> None:
        self._again = None if again is None else weakref.ref(again)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        again = self._again() if self._again is not None else None
        if again is not None and torch.is_grad_enabled():
            again.inputs = args, dict(kwargs)

    def __reduce__(self) -> Any:
        return _Keep, (None,)
