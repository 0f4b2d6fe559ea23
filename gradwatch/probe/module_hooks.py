"""Hooks on modules that change nothing: copies don't get them, and their operations and errors stay hidden."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from gradwatch.containment import Containment
from gradwatch.probe.scalars import DeviceScalars
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

TRACKER = ModuleTracker()  # tells if a backward pass is running; global, as an object that holds it can't be pickled

add_hook: Any = nn.Module.register_forward_hook  # torch's own: a class may override it
add_pre_hook: Any = nn.Module.register_forward_pre_hook


class ModuleHook(partial[Any]):
    """A hook that is not copied with its module: a pickled or deep copy holds a hook that does nothing."""

    def __reduce__(self) -> Any:
        """Return what pickle and deepcopy store instead: a method that takes anything and does nothing."""
        # It is one of the standard library, as the reader of the file may not have gradwatch.
        return getattr, (nullcontext(), "__exit__")


class TrainingThread:
    """The thread that trains: the one that began the step, or another one if that calls a layer first.

    Args:
        is_idle: returns True if no call was seen in the current step.
    """

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        self._is_idle = is_idle
        self.begin()

    def begin(self) -> None:
        """Make this thread the one that trains."""
        self.ident = threading.get_ident()

    def may_be_this(self) -> bool:
        """Make this thread the one that trains if it is the first to call with gradients, and return True then."""
        if not (torch.is_grad_enabled() and self._is_idle()):
            return False
        self.begin()
        return True


class WatchingHook(ModuleHook):
    """A hook that only reads: it changes nothing, its operations are hidden from the user, its errors are contained.

    It does nothing where tensors have no values (under ``torch.func``, tracing, compiling). Other threads than the one
    that trains are not watched, except for those in which autograd runs.
    """

    fail: Callable[[Exception], None]  # is called with an error
    training: TrainingThread

    @classmethod
    def of(
        cls, training: TrainingThread, fail: Callable[[Exception], None], function: Callable[..., Any], *args: Any
    ) -> WatchingHook:
        """Make a hook that calls a function with ``args`` before the hook's arguments."""
        hook = cls(function, *args)
        hook.fail, hook.training = fail, training
        return hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, past the user's modes."""
        # The order is that of cost: nearly all calls pass these checks and get to the first ``return`` below.
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
    """Remove hooks that a module took over from the modules it was made of.

    A copy holds the hooks that do nothing. A fused layer holds the hooks themselves, which can't be removed by their
    handles.
    """

    def is_stray(hook: Any) -> bool:
        is_dead = getattr(hook, "__func__", None) is nullcontext.__exit__
        return is_dead or (isinstance(hook, WatchingHook) and hook.training is training)

    drop_hooks(module, is_stray)


class LossPass:
    """Knows if the running backward pass is that of the step's loss, once it was given the loss.

    Attributes:
        is_running: the loss's pass is running.
        has_run: it has run in the current step. Without a loss it never has, and all passes count.

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
        """Take the next backward pass of this tensor as that of the step's loss."""
        if loss.grad_fn is not None:  # the hook lives as long as this node
            loss.register_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, _: Tensor) -> None:
        self.is_running = self.has_run = True
        at_end_of_backward(self._end)  # with a torch that has no such callback, later passes of the step count too

    def _end(self) -> None:
        self.is_running = False


class StepHooks:
    """Hooks on layers that read something for the length of one measured step.

    Between two measured steps that follow each other the hooks stay on the modules and do nothing: to remove and add
    them costs more than to call them once. A step's mark tells them apart; without a mark no step is measured.

    Args:
        part: name of what is read, for the report when it fails at a layer.
        containment: switches off a layer whose hook fails.
        loss_pass: knows which backward pass is that of the loss.
    """

    def __init__(self, part: str, containment: Containment, loss_pass: LossPass | None) -> None:
        self.training = TrainingThread(self._is_idle)
        self._part, self._containment = part, containment
        self._loss_pass = loss_pass or LossPass()
        self._scalars = DeviceScalars()
        self._failed: set[str] = set()
        self._mark: object | None = None
        self._handles: list[RemovableHandle] = []
        self._leaf_handles: list[RemovableHandle] = []  # on leaves, which outlive the step

    def _is_idle(self) -> bool:
        """Return True if nothing was read in the current step."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Drop what was read in the last step."""
        raise NotImplementedError

    def _add_hooks(self) -> Iterable[RemovableHandle]:
        """Put the hooks on the modules."""
        raise NotImplementedError

    def _hook(self, name: str, function: Callable[..., Any], *args: Any) -> WatchingHook:
        return WatchingHook.of(self.training, partial(self._fail, name), function, name, *args)

    def _fail(self, name: str, error: Exception) -> None:
        self._failed.add(name)
        self._containment.fail(f"{self._part} {name}", error)

    def attach(self, scalars: DeviceScalars) -> None:
        """Begin a step, and put the hooks in place if they are not; ``scalars`` takes the norms."""
        self.rest()
        self.training.begin()
        self._scalars, self._mark = scalars, object()
        self._begin()
        if not self._handles:
            self.resume()

    def resume(self) -> None:
        """Put the hooks in place; what was read stays."""
        self.pause()
        self._handles.extend(self._add_hooks())

    def pause(self) -> None:
        """Remove the hooks from the modules; gradients of earlier calls still arrive."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rest(self) -> None:
        """End the step; the hooks stay on the modules and do nothing until the next one."""
        for handle in self._leaf_handles:
            handle.remove()
        self._leaf_handles.clear()
        self._mark = None

    def detach(self) -> None:
        """End the step and remove every hook; what was read stays."""
        self.pause()
        self.rest()
