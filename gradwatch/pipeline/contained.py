"""The context in which gradwatch works during a step of the user's training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np

from gradwatch.containment import RaisedOnPurpose
from gradwatch.torch_internals import dispatch_mode_count, past_dispatch_modes, past_torch_function


class Contained:
    """Keeps errors and operations of the watching from the training: modes of the user's see none of them.

    It is entered several times at each step, also where nothing is measured. So it is a class: with the generator of
    ``contextlib.contextmanager`` a context costs more than most of what it guards.

    Args:
        fail: is called with an error, which then ends here, unless it is one that is meant to reach the user.
        with_numpy: let NumPy warn of nothing, and raise nothing, whatever the user has set.

    Example:
        >>> errors = []
        >>> with Contained(errors.append):
        ...     raise KeyError("a")
        >>> errors
        [KeyError('a')]
    """

    __slots__ = ("_errors", "_fail", "_functions", "_modes")

    def __init__(self, fail: Callable[[Exception], object], *, with_numpy: bool = True) -> None:
        self._fail = fail
        self._functions: AbstractContextManager[Any] = past_torch_function()
        self._modes = past_dispatch_modes() if dispatch_mode_count() else None
        self._errors = np.errstate(all="ignore") if with_numpy else None

    def __enter__(self) -> None:
        if self._modes is not None:
            self._modes.__enter__()
        self._functions.__enter__()
        if self._errors is not None:
            self._errors.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if self._errors is not None:
            self._errors.__exit__(kind, error, at)
        self._functions.__exit__(kind, error, at)
        if self._modes is not None:
            self._modes.__exit__(kind, error, at)
        if not isinstance(error, Exception) or isinstance(error, RaisedOnPurpose):
            return False
        self._fail(error)
        return True
