"""Checks of the plain values that records are read from: a damaged line must not pass for a record."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


def of_type(kind: type[T], value: Any) -> T:
    """Return the value, or raise a TypeError where it is of another type."""
    if type(value) is not kind:  # not isinstance: True would be an int
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def as_step(value: Any) -> int:
    """Return the value, or raise an error where it is no index of a step."""
    step = of_type(int, value)
    if not 0 <= step < 1 << 63:
        raise ValueError(f"{step} is no step")
    return step


def as_names(value: Any) -> tuple[str, ...]:
    """Return a list of texts as a tuple, or raise a TypeError."""
    return tuple(of_type(str, name) for name in of_type(list, value))


def as_number(value: Any) -> float:
    """Return a number; the texts ``inf`` and ``-inf`` are numbers, None is NaN."""
    if type(value) in (list, dict, bool):
        raise TypeError(f"{value!r:.50} is no number")
    return float(as_array([value])[0])


def _is_array(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == np.float64


def as_array(values: Any) -> npt.NDArray[np.float64]:
    """Return a list of numbers, or an array of them, as an array; or raise an error."""
    # Reads None as NaN, and the texts "inf" and "-inf".
    array: npt.NDArray[np.float64] = np.array(values if _is_array(values) else of_type(list, values), np.float64)
    if array.ndim != 1:
        raise ValueError(f"{array.ndim} dimensions; expected 1")
    return array
