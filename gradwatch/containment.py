"""Keeps errors of the watching out of the training."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Any, Literal, TypeVar

OnError = Literal["warn", "raise"]
T = TypeVar("T")

_LIBRARIES = {
    "accelerate", "contextlib", "gradwatch", "lightning", "lightning_fabric", "lightning_utilities", "peft",
    "pytorch_lightning", "torch", "torchmetrics", "transformers", "trl",
}  # fmt: skip
ENVIRONMENT = "GRADWATCH_ON_ERROR"  # gives on_error where nobody sets it


class RaisedOnPurpose(Exception):
    """An error that is meant to reach the user: containment lets it through."""


class SettingError(RaisedOnPurpose, ValueError):
    """A setting that cannot be met, found when the model or the Trainer is known."""


class UnsupportedError(RaisedOnPurpose, NotImplementedError):
    """A way of training that gradwatch cannot measure rightly, and refuses at the start."""


@dataclass(frozen=True)
class OutOfService:
    """A part of the watching that failed and was switched off.

    Attributes:
        part: the layer, detector, file or logger, as in ``layer encoder.3``.
        step: the optimizer step at which it failed.
        error: the error's type and message.

    Example:
        >>> print(OutOfService("layer encoder.3", 120, "RuntimeError: no storage"))
        layer encoder.3: not watched since step 120 (RuntimeError: no storage)
    """

    part: str
    step: int
    error: str

    def __str__(self) -> str:
        return f"{self.part}: not watched since step {self.step} ({self.error})"


class Containment:
    """Catches errors of the watching, switches the part that failed off, and says so once.

    It keeps the words of an error, never the error itself, whose frames would keep tensors alive.

    Args:
        on_error: ``"warn"``, or ``"raise"`` for tests and for people who debug a detector; None takes the environment
            variable ``GRADWATCH_ON_ERROR``, and ``"warn"`` where it is not set.
        speaks: False in processes that leave the warning to another one.

    Attributes:
        step: the current optimizer step, set from outside.
        failures: the parts out of service, in the order in which they failed.
        shared: parts that all processes of a training have, in the same order, such as the detectors.

    Raises:
        ValueError: for an unknown ``on_error``.
    """

    def __init__(self, on_error: OnError | None = None, *, speaks: bool = True) -> None:
        self.on_error = require_on_error(on_error)
        self.speaks = speaks
        self.step = 0
        self.failures: list[OutOfService] = []
        self.shared: tuple[str, ...] = ()

    def is_out(self, part: str) -> bool:
        """Return True if a part has failed before."""
        return any(failure.part == part for failure in self.failures)

    def run(self, part: str, function: Callable[..., T], *args: Any) -> T | None:
        """Call a function and return its result; None where its part is out of service or fails now."""
        if self.failures and self.is_out(part):
            return None
        try:  # not the guard below, which takes longer than most of what is called here
            return function(*args)
        except RaisedOnPurpose:
            raise
        except Exception as error:
            self.fail(part, error)
        return None

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """Switch a part off if the body of the ``with`` raises."""
        try:
            yield
        except RaisedOnPurpose:
            raise
        except Exception as error:
            self.fail(part, error)

    def fail(self, part: str, error: Exception) -> None:
        """Switch a part off for an error; call this from an ``except`` block."""
        if self.on_error == "raise":
            raise error
        self._switch_off(OutOfService(part, self.step, error_in_words(error)))

    def failed_elsewhere(self, part: str, step: int) -> None:
        """Switch a part off that failed in another process, so that all processes find the same."""
        if not self.is_out(part):
            if self.on_error == "raise":
                raise RuntimeError(f"{part} has failed in another process")
            self._switch_off(OutOfService(part, step, "it failed in another process"))

    def shared_failures(self) -> dict[int, OutOfService]:
        """Return place in ``shared`` -> failure, for the shared parts that are out of service."""
        failed = {failure.part: failure for failure in self.failures}
        return {place: failed[part] for place, part in enumerate(self.shared) if part in failed}

    def _switch_off(self, failure: OutOfService) -> None:
        if not self.is_out(failure.part):
            self.failures.append(failure)
            if self.speaks:
                say(f"{failure}. The training is not affected and goes on.")


def require_on_error(value: OnError | None) -> OnError:
    """Return the value, or the environment's for None; raise a ValueError if it is unknown.

    Example:
        >>> require_on_error("ignore")
        Traceback (most recent call last):
            ...
        ValueError: on_error is 'ignore'; expected 'warn' or 'raise'
    """
    value = value or os.environ.get(ENVIRONMENT, "warn")  # type: ignore[assignment]
    if value not in ("warn", "raise"):
        raise ValueError(f"on_error is {value!r}; expected 'warn' or 'raise'")
    return value


def say(message: str) -> None:
    """Warn, and never raise: where warnings are errors, print the message to the standard error stream."""
    try:
        warnings.warn(f"gradwatch: {message}", UserWarning, stacklevel=stacklevel_of_user())
    except UserWarning:
        print(f"gradwatch: {message}", file=sys.stderr)


say_once = lru_cache(say)
"""Warn as :func:`say` does, once in a process for each message."""


def stacklevel_of_user() -> int:
    """Return the ``stacklevel`` at which a warning of the caller points at the user's code, past all libraries.

    Example:
        >>> stacklevel_of_user()  # an example is a user's code
        1
    """
    frame, level = sys._getframe(1), 1
    while frame is not None and library_module(frame):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return level if frame is not None else 1


def library_module(frame: FrameType) -> str:
    """Return the module of a frame's code if it is torch's, Lightning's or gradwatch's; empty for a user's code.

    Examples of gradwatch count as a user's code, and so does what is typed into a notebook, a prompt or a docstring.
    """
    name = str(frame.f_globals.get("__name__", ""))
    is_users = frame.f_code.co_filename.startswith("<") or name.startswith("gradwatch.examples.")
    return name if name.partition(".")[0] in _LIBRARIES and not is_users else ""


def error_in_words(error: BaseException) -> str:
    """Return the type and message of an error, on one line.

    Example:
        >>> error_in_words(KeyError("a")), error_in_words(TimeoutError())
        ("KeyError: 'a'", 'TimeoutError')
    """
    text = " ".join(str(error).split())  # some messages of torch go over many lines
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
