"""Time in named functions, each without that of the measured functions that it calls."""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch


@dataclass
class Lap:
    """Seconds and calls by label, since the lap before."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)


class Stopwatch:
    """Adds up the own time of functions in the thread that made it.

    To time a call takes about a microsecond itself. That is measured first, and taken off: the part within what the
    function is said to take, and the part around it, which would count for the function that called it.

    Args:
        clock: returns seconds.

    Example:
        >>> import textwrap
        >>> watch = Stopwatch()
        >>> with watch.on({"text": ["textwrap:fill"], "pieces": ["textwrap:TextWrapper._split"]}):
        ...     _ = textwrap.fill("two words")
        >>> dict(watch.lap().calls)
        {'pieces': 1, 'text': 1}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lap = clock, Lap()
        self._nested: list[float] = []  # for each running function, the seconds in measured ones that it has called
        self._thread = threading.get_ident()
        self._within = self._around = 0.0
        trials = [self._own_cost() for _ in range(5)]
        self._within, self._around = (min(costs) for costs in zip(*trials, strict=True))  # other load only adds time

    def _own_cost(self, calls: int = 2000) -> tuple[float, float]:
        """Return the seconds that timing a call adds within the call, and around it."""

        def nothing() -> None: ...

        def loop(function: Callable[[], None]) -> float:
            began = self._clock()
            for _ in range(calls):
                function()
            return self._clock() - began

        plain = loop(nothing)
        timed = loop(self.timed("nothing", nothing))
        within = self.lap().seconds["nothing"]
        return (within - plain) / calls, (timed - within) / calls

    @contextmanager
    def on(self, functions: Mapping[str, Sequence[str]]) -> Iterator[None]:
        """Time functions for the length of a block.

        Args:
            functions: label -> functions, as ``module:name`` or ``module:Class.name``. The module is the one that looks
                the name up: a function that several modules import has a label for each.

        Raises:
            LookupError: for a function that is not there.
        """
        places = [(label, *place_of(target, label)) for label, targets in functions.items() for target in targets]
        with ExitStack() as stack:
            for label, owner, name, function in places:
                stack.enter_context(patch.object(owner, name, self._timed_like(label, function)))
            yield

    def lap(self) -> Lap:
        """Return what was added up since the last call."""
        lap, self._lap = self._lap, Lap()
        return lap

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added up under a label."""
        nested, thread, clock = self._nested, self._thread, self._clock

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return function(*args, **kwargs)
            nested.append(0.0)
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - began
                lap = self._lap
                lap.seconds[label] += took - nested.pop() - self._within
                lap.calls[label] += 1
                if nested:
                    nested[-1] += took + self._around

        return call

    def _timed_like(self, label: str, function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self.timed(label, function.__func__))
        return self.timed(label, function)


def place_of(target: str, label: str) -> tuple[Any, str, Any]:
    """Return the module or class that holds a function, its name there, and the function as it is stored.

    Raises:
        LookupError: where it is not there, or is no function.

    Example:
        >>> place_of("textwrap:TextWrapper.wraps", "pieces")
        Traceback (most recent call last):
            ...
        LookupError: textwrap:TextWrapper.wraps, of 'pieces', is not there; expected a function as module:name
    """
    module, _, path = target.partition(":")
    missing = f"{target}, of {label!r}, is not there; expected a function as module:name"
    try:
        owner: Any = importlib.import_module(module)
        *classes, name = path.split(".")
        for part in classes:
            owner = getattr(owner, part)
        function = inspect.getattr_static(owner, name)
    except (ImportError, AttributeError) as error:
        raise LookupError(missing) from error
    stored = getattr(function, "__func__", function)
    if not inspect.isfunction(stored) or inspect.isgeneratorfunction(stored):
        raise LookupError(f"{target}, of {label!r}, is a {type(function).__name__}; expected a function that returns")
    return owner, name, function
