"""Checks of the thresholds that detectors are given."""

from __future__ import annotations


def require_positive(owner: object, **values: float) -> None:
    """Raise for the first value that is not a positive number.

    Example:
        >>> require_positive("Vanishing", ratio=-1)
        Traceback (most recent call last):
            ...
        ValueError: Vanishing: ratio is -1; expected a number above 0
    """
    name = owner if isinstance(owner, str) else type(owner).__name__
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name}: {key} is {value!r}; expected a number above 0")


def require_whole(owner: object, **values: int) -> None:
    """Raise for the first value that is not a whole number above 0."""
    require_positive(owner, **values)
    for key, value in values.items():
        if not isinstance(value, int):
            raise ValueError(f"{type(owner).__name__}: {key} is {value!r}; expected a whole number above 0")


def require_share(owner: object, **values: float) -> None:
    """Raise for the first value that is not a share: above 0 and at most 1."""
    require_positive(owner, **values)
    for key, value in values.items():
        if value > 1:
            raise ValueError(f"{type(owner).__name__}: {key} is {value!r}; expected a share above 0 and at most 1")
