"""Hooks on modules that change nothing: they follow no copy, and nobody sees their operations or their errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.module_tracker import ModuleTracker

from gradwatch.torch_internals import (
    dispatch_mode_count,
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
        """Return what pickle and deepcopy take in its place."""
        return _nothing, ()


class TrainingThread:
    """The thread in which the step under way was begun."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Take this thread for the one that trains."""
        self.ident = threading.get_ident()


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
        if threading.get_ident() != self.training.ident and not TRACKER.is_bw:
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


def _nothing() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_: Any) -> None:
    pass
