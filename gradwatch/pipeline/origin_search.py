"""The search for the operation that makes NaN, at the step that makes it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradwatch.probe.origin import find_origin
from gradwatch.probe.shards import is_sharded
from gradwatch.snapshot import Origin

PART = "the search for the origin of NaN"
_MOST_TRIES = 3  # a search takes two passes; NaN that comes back at each of them is not found by more
_SAMPLED, _SMALL = 2, 4096  # parameters whose gradients are looked at in each step, and their largest size

Again = tuple[nn.Module, Callable[[], object]]  # a model, and what computes its loss again


class OriginSearch:
    """Sees that a step on a CPU turns NaN, before its optimizer steps, and searches the operation that does it.

    Reading a number of a CPU is free, so each step's loss is read, and the gradients of two small parameters: the first
    one, to which all gradients go, and one in the middle. Of another device nothing is read.

    Attributes:
        origin: what was found; None so far.

    Args:
        model: is trained.
        is_shared: several processes train: one of them may not compute a step alone.
    """

    def __init__(self, model: nn.Module, *, is_shared: bool) -> None:
        self.origin: Origin | None = None
        self._model = model
        self._tries = 0 if is_shared else _MOST_TRIES
        self._sample: list[nn.Parameter] | None = None
        self._is_bad = False

    @property
    def is_open(self) -> bool:
        """Return True while it is worth searching."""
        return self._tries > 0 and self.origin is None

    def note(self, loss: Tensor) -> None:
        """Look at a loss, before its backward pass or after it."""
        if self.is_open and loss.is_cpu and loss.numel() == 1 and not loss.is_complex():
            self._is_bad |= not math.isfinite(loss.item())

    def look(self, step: int, again: Callable[[], Again], batch: object = None, state: Tensor | None = None) -> bool:
        """Look at the gradients; search if they, or the loss, are not finite. Return True if something was found.

        Args:
            step: index of the optimizer step.
            again: returns the model, or a copy of it, and a function that computes the loss again.
            batch: of the step.
            state: of torch's random numbers when it began.
        """
        if not self.is_open:
            return False
        if not (self._is_bad or self._has_bad_gradient()):
            return False
        return self.search(step, again, batch, state)

    def search(self, step: int, again: Callable[[], Again], batch: object = None, state: Tensor | None = None) -> bool:
        """Search now; return True if something was found."""
        if not self.is_open:
            return False
        self._is_bad = False
        self._tries -= 1
        try:
            model, compute = again()
            origin = find_origin(step, model, compute, batch, state)
        except Exception:  # of the user's code, which was not made to run twice
            return False
        if origin is not None and origin.source == "weights":  # too late: they were NaN before
            self._tries = 0
            return False
        self.origin = origin
        return origin is not None

    def _has_bad_gradient(self) -> bool:
        if self._sample is None:
            self._sample = _sample(self._model)
        grads = [param.grad.flatten() for param in self._sample if param.grad is not None and not param.grad.is_sparse]
        if not grads:
            return False
        with torch.no_grad():
            return not math.isfinite(sum(grad.sum().item() for grad in grads))

    def close(self) -> None:
        """Drop the references to the model's parameters."""
        self._sample, self._tries = [], 0


def _sample(model: nn.Module) -> list[nn.Parameter]:
    if not any(param.is_cpu for param in model.parameters()):
        return []
    params = [p for p in model.parameters() if p.requires_grad and p.is_cpu and not is_sharded(p)]
    small = [param for param in params if param.numel() <= _SMALL]
    return [small[place] for place in sorted({0, len(small) // 2})][:_SAMPLED] if small else params[:1]
