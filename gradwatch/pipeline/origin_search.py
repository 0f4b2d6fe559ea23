"""The search for the operation that makes NaN, at the step that makes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.containment import Containment
from gradwatch.pipeline.contained import Contained
from gradwatch.pipeline.fork import call_in_fork, can_fork
from gradwatch.probe.layers import named_parameters
from gradwatch.probe.norms import is_plain, is_readable
from gradwatch.probe.origin import find_origin
from gradwatch.snapshot import Origin

PART = "the search for the origin of NaN"
_MOST_TRIES = 3  # a search takes two passes; NaN that comes back at each of them is not found by more
_SAMPLED, _SMALL = 2, 4096  # parameters whose gradients are looked at in each step, and their largest size
_REAL = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

Again = tuple[nn.Module, Callable[[], object]]  # a model, and what computes its loss again


class OriginSearch:
    """Sees that a step on a CPU turns NaN, before its optimizer steps, and searches the operation that does it.

    Reading a number of a CPU is free, so each step's loss is read, and the gradients of two small parameters: the first
    one, to which all gradients go, and one in the middle. Of another device nothing is read. The search computes the
    step again in a forked process, so that code of the user's leaves no trace of a second run.

    Attributes:
        origin: what was found; None so far.

    Args:
        model: is trained.
        containment: switches the search off where it fails.
        is_shared: several processes train: one of them may not compute a step alone.
    """

    def __init__(self, model: nn.Module, containment: Containment, *, is_shared: bool) -> None:
        self._containment = containment
        self.origin: Origin | None = None
        self._model: nn.Module | None = model
        self._tries = 0 if is_shared or not can_fork() else _MOST_TRIES
        self._sample: list[nn.Parameter] | None = None
        self._is_bad = False

    @property
    def is_open(self) -> bool:
        """Return True while it is worth searching."""
        return self._tries > 0 and self.origin is None

    def note(self, loss: Tensor) -> None:
        """Look at a loss, before its backward pass or after it."""
        if not self.is_open:
            return
        with Contained(self.give_up, with_numpy=False):
            self._note(loss)

    def seek(
        self, step: int, again: Callable[[], Again], batch: Any, state: Tensor | None, *, crashed: bool
    ) -> Origin | None:
        """Search where the step turned NaN, or ``crashed``; return what was found. For the rest see :meth:`search`."""
        if not self.is_open:
            return None
        is_due = crashed or self._is_bad
        if not is_due:
            with Contained(self.give_up, with_numpy=False):
                is_due = self._has_bad_gradient()
        try:
            return self.origin if is_due and self.search(step, again, batch, state) else None
        except Exception as error:
            self.give_up(error)
            return None

    def give_up(self, error: Exception) -> None:
        """Search no more, for an error; call this from an ``except`` block."""
        self._tries = 0
        self._containment.fail(PART, error)

    def _note(self, loss: Tensor) -> None:
        if loss.is_cpu and _can_sum(loss) and loss.numel() == 1:
            self._is_bad |= not math.isfinite(loss.item())

    def search(self, step: int, again: Callable[[], Again], batch: object = None, state: Tensor | None = None) -> bool:
        """Search now; return True if something was found.

        Args:
            step: index of the optimizer step.
            again: returns the model, and a function that computes the loss again; is called in the fork.
            batch: of the step.
            state: of torch's random numbers when it began.
        """
        if not self.is_open:
            return False
        self._is_bad = False
        self._tries -= 1
        found = call_in_fork(partial(_search, step, again, batch, state))
        origin = Origin.from_dict(found) if found else None
        if origin is not None and origin.source == "weights":  # too late: they were NaN before
            self._tries = 0
            return False
        self.origin = origin
        return origin is not None

    def _has_bad_gradient(self) -> bool:
        if self._sample is None and self._model is not None:
            self._sample = _sample(self._model)
        total = 0.0
        for param in self._sample or ():
            # Not under no_grad, which takes as long as a sum. The graph of a gradient with a graph is dropped at once.
            if (grad := param.grad) is not None and _can_sum(grad):
                total += grad.sum().item()
        return not math.isfinite(total)

    def close(self) -> None:
        """Drop the references to the model's parameters."""
        self._model, self._sample, self._tries = None, [], 0


def _can_sum(tensor: Tensor) -> bool:
    """Return True if a tensor of a CPU holds all its numbers; of nearly all, the first look tells."""
    if type(tensor) is Tensor and tensor.dtype in _REAL and tensor.layout is torch.strided and not tensor.is_nested:
        return True
    return is_readable(tensor) and is_plain(tensor)


def may_be_of_nan(error: BaseException) -> bool:
    """Return True if code that is given NaN may raise such an error.

    Example:
        >>> may_be_of_nan(AssertionError()), may_be_of_nan(KeyError()), may_be_of_nan(torch.OutOfMemoryError())
        (True, False, False)
    """
    kinds = (ValueError, AssertionError, ArithmeticError, RuntimeError)
    return isinstance(error, kinds) and not isinstance(error, torch.OutOfMemoryError)


def _search(step: int, again: Callable[[], Again], batch: object, state: Tensor | None) -> dict[str, Any] | None:
    origin = find_origin(step, *again(), batch, state)
    return None if origin is None else dict(vars(origin))


def _sample(model: nn.Module) -> list[nn.Parameter]:
    params = [param for _, param, _ in named_parameters(model) if is_readable(param)]
    if not all(param.is_cpu for param in params):
        return []
    params = [param for param in params if param.requires_grad and is_plain(param)]
    small = [param for param in params if param.numel() <= _SMALL]
    return [small[place] for place in sorted({0, len(small) // 2})][:_SAMPLED] if small else params[:1]
