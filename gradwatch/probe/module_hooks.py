"""Hooks on modules that change nothing: they follow no copy, and nobody sees their operations or their errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from gradwatch.torch_internals import (
    at_end_of_backward,
    dispatch_mode_count,
    drop_hooks,
    function_mode_count,
    functorch_level,
    hide_from_script,
    is_tracing,
    past_dispatch_modes,
    past_torch_function,
)

TRACKER = ModuleTracker()  # only asked whether a backward pass is running; it can't be pickled, so nobody holds it

add_hook: Any = nn.Module.register_forward_hook  # torch's own: a class may override it
add_pre_hook: Any = nn.Module.register_forward_pre_hook


class ModuleHook(partial[Any]):
    """A hook that does not follow its module: a copy of the module, pickled or deep, holds one that does nothing."""

    def __reduce__(self) -> Any:
        """Return what pickle and deepcopy take in its place.

        That is a function of the standard library which takes anything and does nothing: who reads the file may not
        have gradwatch.
        """
        return getattr, (nullcontext(), "__exit__")


class TrainingThread:
    """The thread that trains: the one in which the step under way was begun, or if another calls first, that one.

    Args:
        is_idle: tells if no call was seen in the step under way.
    """

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        self._is_idle = is_idle
        self.begin()

    def begin(self) -> None:
        """Take this thread for the one that trains."""
        self.ident = threading.get_ident()

    def may_be_this(self) -> bool:
        """Take this thread, too, if it calls with gradients before any other does."""
        if not (torch.is_grad_enabled() and self._is_idle()):
            return False
        self.begin()
        return True


class WatchingHook(ModuleHook):
    """A hook that only looks on: it changes nothing, nobody sees its operations, and its errors end nothing.

    It is silent where tensors have no values (under ``torch.func``, tracing, compiling) and in other threads than the
    one that trains, except for those in which autograd runs.
    """

    fail: Callable[[Exception], None]
    """Called with an error."""
    training: TrainingThread

    @classmethod
    def of(
        cls, training: TrainingThread, fail: Callable[[Exception], None], function: Callable[..., Any], *args: Any
    ) -> WatchingHook:
        """Make a hook that calls a function with ``args`` in front of what hooks are given."""
        hook = cls(function, *args)
        hook.fail, hook.training = fail, training
        return hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, past the user's modes."""
        if functorch_level() is not None or is_tracing():
            return None
        if threading.get_ident() != self.training.ident and not (TRACKER.is_bw or self.training.may_be_this()):
            return None
        try:
            if not (dispatch_mode_count() or function_mode_count()):
                return self.func(*self.args, *args, **kwargs)
            with past_torch_function(), past_dispatch_modes():
                return self.func(*self.args, *args, **kwargs)
        except Exception as error:
            self.fail(error)
            return None


hide_from_script(ModuleHook)


def sweep(module: nn.Module, training: TrainingThread) -> None:
    """Remove hooks that came to a module with what it was made of.

    A copy has what stands in the place of the original's hooks, and a layer that was fused has the hooks themselves,
    which nobody can remove by their handles.

    Args:
        module: any module.
        training: of the hooks to remove.
    """
    drop_hooks(module, lambda hook: _is_stray(hook, training))


def _is_stray(hook: Any, training: TrainingThread) -> bool:
    is_dead = getattr(hook, "__func__", None) is nullcontext.__exit__
    return is_dead or (isinstance(hook, WatchingHook) and hook.training is training)


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
