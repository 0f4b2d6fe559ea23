"""Tells the backward pass of a step's loss from others, such as that of a penalty or of a callback's own."""

from __future__ import annotations

from torch import Tensor

from gradwatch.torch_internals import at_end_of_backward


class LossPass:
    """Knows whether the backward pass that is running is that of the step's loss, where it was told of the loss.

    Attributes:
        is_running: the pass is running.
        has_run: it has run in the step under way. Where nobody tells of the loss it never has, and all passes count.

    Example:
        >>> import torch
        >>> loss_pass, weight, seen = LossPass(), torch.ones(2, requires_grad=True), []
        >>> hidden = 2 * weight
        >>> handle = hidden.register_hook(lambda grad: seen.append(loss_pass.is_running))
        >>> loss = hidden.sum()
        >>> penalty = torch.autograd.grad(loss, weight, retain_graph=True)
        >>> loss_pass.expect(loss)
        >>> loss.backward()
        >>> seen, loss_pass.is_running
        ([False, True], False)
    """

    def __init__(self) -> None:
        self.is_running = self.has_run = False

    def reset(self) -> None:
        """Begin another step."""
        self.is_running = self.has_run = False

    def expect(self, loss: Tensor) -> None:
        """Take the next backward pass of this tensor for that of the step's loss."""
        if loss.grad_fn is not None:  # which the hook goes with
            loss.register_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, _: Tensor) -> None:
        self.is_running = self.has_run = True
        at_end_of_backward(self._end)  # where a torch can't tell, what comes later in the step counts too

    def _end(self) -> None:
        self.is_running = False
