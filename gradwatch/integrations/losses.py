"""Listens to the losses of a loop that hands each to an object's ``backward``: an Accelerator, or a Fabric."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, Protocol

from torch import Tensor


class Listener(Protocol):
    """Is told of each loss."""

    def before_backward(self, loss: Tensor) -> None:
        """Take a loss, just before its backward pass."""

    def after_backward(self) -> None:
        """Look at what the backward pass of the loss has made."""


class Losses:
    """Tells a callback of each loss before its backward pass, which no event does.

    It stands in place of the owner's ``backward`` until :meth:`close`, and passes everything on. It does not keep the
    callback alive, and once that is gone, or in a copy, it does nothing else.

    Args:
        owner: has a method ``backward``, whose first argument is a loss.
        listener: is told of the losses; its method contains its own errors.

    Example:
        >>> import torch
        >>> class Loop:
        ...     def backward(self, loss):
        ...         loss.backward()
        >>> class Prints:
        ...     def before_backward(self, loss):
        ...         print(float(loss))
        ...     def after_backward(self):
        ...         print("done")
        >>> loop, prints = Loop(), Prints()
        >>> losses = Losses(loop, prints)
        >>> loop.backward(torch.tensor(2.0, requires_grad=True))
        2.0
        done
        >>> losses.close()
        >>> vars(loop)
        {}
    """

    def __init__(self, owner: Any, listener: Listener) -> None:
        self._owner, self._listener = owner, weakref.ref(listener)
        self._before, self._backward = vars(owner).get("backward"), owner.backward
        owner.backward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tell of the loss, do what the owner does, and tell that it is done."""
        listener = self._listener()
        loss = args[0] if args else kwargs.get("loss", kwargs.get("tensor"))
        if listener is not None and isinstance(loss, Tensor):
            listener.before_backward(loss)
        result = self._backward(*args, **kwargs)
        if listener is not None:
            listener.after_backward()
        return result

    def close(self) -> None:
        """Put back what was in place before."""
        if vars(self._owner).get("backward") is not self:
            return
        if self._before is None:
            del self._owner.backward
        else:
            self._owner.backward = self._before

    def __reduce__(self) -> Any:
        """Return what a copy is, pickled or deep: the method of the owner's copy."""
        return partial, (type(self._owner).backward, self._owner)
