"""Adds gradwatch to trainings that do not name it, where the environment variable ``GRADWATCH`` is set.

Lightning finds the two factories through the entry points of this package and calls them whenever a Trainer or a Fabric
is made. transformers has no entry points, so there the class is added when the module of its Trainer is imported. This
module is loaded in programs that do not use gradwatch, so it loads nothing before it is asked for something.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from gradwatch.containment import error_in_words, say
from gradwatch.text_options import NO, YES, options_of_text

ENVIRONMENT = "GRADWATCH"
_TRANSFORMERS = "transformers.trainer"

Make = Callable[[], Any]  # a callback
_makers: list[Make] = []  # of those of every Trainer, in place of the environment's; the last one counts


def environment() -> str | None:
    """Return the options in the environment variable, empty where it only says yes; None where it is off.

    Example:
        >>> os.environ[ENVIRONMENT] = "every_n_steps=10"
        >>> environment()
        'every_n_steps=10'
        >>> del os.environ[ENVIRONMENT]
        >>> environment() is None
        True
    """
    text = os.environ.get(ENVIRONMENT, "").strip()
    if text.lower() in NO:
        return None
    return "" if text.lower() in YES else text


def trainer_callbacks() -> list[Any]:
    """Return the callbacks to add to a Trainer: the entry point ``lightning.pytorch.callbacks_factory``."""
    if _makers:
        return _contained(_makers[-1])
    return [] if environment() is None else _contained(_monitor_of_environment)


def fabric_callbacks() -> list[Any]:
    """Return the callbacks to add to a Fabric: the entry point ``lightning.fabric.callbacks_factory``."""
    return [] if environment() is None else _contained(_fabric_callback)


@contextmanager
def added_to_trainers(make: Make) -> Iterator[None]:
    """Add a callback to every Trainer that is made in the body of the ``with``, whatever the environment says."""
    _makers.append(make)
    try:
        yield
    finally:
        _makers.remove(make)


def watch_transformers() -> None:
    """Add gradwatch's callback to every Trainer of transformers that this process will make."""
    module = sys.modules.get(_TRANSFORMERS)
    if module is not None:
        _add_to_transformers(module)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(_TRANSFORMERS, _add_to_transformers))


def _contained(make: Make) -> list[Any]:
    """Return a callback in a list; an empty list where it cannot be made, which must not end the program."""
    try:
        return [make()]
    except Exception as error:
        say(f"{ENVIRONMENT} is set, and nothing is watched: {error_in_words(error)}")
        return []


def _monitor_of_environment() -> Any:
    from gradwatch.callbacks.added import AddedMonitor

    return AddedMonitor(**_options_for(AddedMonitor))


def _fabric_callback() -> Any:
    from gradwatch.integrations.fabric import AddedCallback

    return AddedCallback(**_options_for(AddedCallback))


def _transformers_callback() -> type:
    """Return a class, which each Trainer makes its own callback of."""
    from gradwatch.integrations.transformers import AddedCallback, GradwatchCallback

    AddedCallback.options = _options_for(GradwatchCallback)
    return AddedCallback


def _options_for(kind: type) -> dict[str, Any]:
    return options_of_text(kind, environment() or "", ENVIRONMENT)


def _add_to_transformers(module: ModuleType) -> None:
    """Put the callback among those that each Trainer begins with."""
    defaults: list[Any] = vars(module)["DEFAULT_CALLBACKS"]
    if not any(each.__name__ == "AddedCallback" for each in defaults):
        defaults += _contained(_transformers_callback)


class _AfterImport(MetaPathFinder):
    """Calls a function with a module once that is imported, and is gone then."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module by the other finders, and let its loader call the function at the end."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._act(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
