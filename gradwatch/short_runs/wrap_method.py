"""Wrapped methods on a single object, which are copied and pickled with it. A closure would keep the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Wraps(Protocol):
    """Something that changes a method, such as a remedy."""

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the method that was there before, and change its arguments or its result."""


class Wrapped:
    """A method of one object, around the method that it had before, which may be wrapped too."""

    def __init__(self, owner: Any, name: str, remedy: Wraps) -> None:
        self.owner, self.name, self.remedy = owner, name, remedy
        self.before: Callable[..., Any] | None = owner.__dict__.get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the changed result."""
        return self.remedy.wrap(self._method, *args, **kwargs)

    @property
    def _method(self) -> Callable[..., Any]:
        method: Callable[..., Any] = self.before or getattr(type(self.owner), self.name).__get__(self.owner)
        return method

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The class's method: a Trainer reads its signature, and asks if it is overridden."""
        return self.before.__wrapped__ if isinstance(self.before, Wrapped) else self._method


def owner_of(method: Callable[..., Any]) -> Any:
    """Return the object of a method that a ``wrap`` is given, wrapped before or not.

    Example:
        >>> numbers = [1]
        >>> owner_of(numbers.append) is numbers
        True
    """
    return method.owner if isinstance(method, Wrapped) else method.__self__  # type: ignore[attr-defined]


def wrap_method(owner: Any, name: str, remedy: Wraps) -> None:
    """Put a wrapped method on an object.

    Example:
        >>> class Twice:
        ...     def wrap(self, method, *args):
        ...         return 2 * method(*args)
        >>> class Counter:
        ...     def count(self):
        ...         return 1
        >>> counter = Counter()
        >>> wrap_method(counter, "count", Twice())
        >>> wrap_method(counter, "count", Twice())
        >>> counter.count()
        4
    """
    object.__setattr__(owner, name, Wrapped(owner, name, remedy))
