"""Checks of arguments: a ValueError names the setting, what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real


def _refuse(owner: object, name: str, value: object, expected: str) -> ValueError:
    """Return the error; the owner is a name, or the object that was given the setting."""
    prefix = "" if owner is None else f"{owner if isinstance(owner, str) else type(owner).__name__}: "
    return ValueError(f"{prefix}{name} is {value!r}; expected {expected}")


def require_number(
    owner: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    finite: bool = True,
    **values: float,
) -> None:
    """Raise for the first value that is not a number between the bounds; numbers of NumPy count, bool and NaN do not.

    Args:
        owner: the object that was given the settings, a name, or None for a message without it.
        above: lower bound, exclusive.
        least: lower bound, inclusive.
        below: upper bound, exclusive.
        most: upper bound, inclusive.
        finite: refuse infinity too.
        **values: the settings by name.

    Example:
        >>> require_number("AdaptiveClip", above=0, clip_factor=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: AdaptiveClip: clip_factor is -1.0; expected a finite number above 0
    """
    for name, value in values.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not (
            is_number
            and (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
            and (-math.inf < value < math.inf if finite else value == value)  # no math.isfinite: a large int overflows
        ):
            bounds = {"above": above, "of at least": least, "below": below, "at most": most}
            text = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
            raise _refuse(owner, name, value, f"a {'finite ' * finite}number {text}".rstrip())


def require_positive(owner: object, **values: float) -> None:
    """Raise for the first value that is not a number above 0; infinity is one, as a threshold that nothing exceeds."""
    require_number(owner, above=0, finite=False, **values)


def require_share(owner: object, **values: float) -> None:
    """Raise for the first value that is not a share: above 0 and at most 1."""
    require_number(owner, above=0, most=1, finite=False, **values)


def require_whole(owner: object, *, least: int = 1, **values: int) -> None:
    """Raise for the first value that is not a whole number of at least ``least``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise _refuse(owner, name, value, f"a whole number of at least {least}")


def require_patterns(owner: object, **values: Iterable[str]) -> None:
    """Raise for the first value that is a single string, which would be taken for a list of letters."""
    for name, value in values.items():
        if isinstance(value, str):
            raise _refuse(owner, name, value, f"a list of patterns, such as [{value!r}]")


def require_one_of(owner: object, allowed: Sequence[str], **values: str) -> None:
    """Raise for the first value that is not one of the names."""
    for name, value in values.items():
        if value not in allowed:
            *others, last = map(repr, allowed)
            raise _refuse(owner, name, value, f"{', '.join(others)} or {last}")
