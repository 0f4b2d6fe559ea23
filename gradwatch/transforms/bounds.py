"""Checks of a transform's settings, and the coefficient that brings a norm under a bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_number(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raise a ValueError unless ``low <= value <= high`` (``low < value`` where ``above``) and the value is finite.

    Example:
        >>> check_number("max_norm", -1.0, 0, above=True)
        Traceback (most recent call last):
        ValueError: max_norm is -1.0; expected a finite number above 0
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        bounds = f"above {low}" if above else f"of at least {low}"
        bounds += "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} is {value!r}; expected a finite number {bounds}")


def check_count(name: str, value: int, low: int = 1) -> None:
    """Raise a ValueError unless ``value`` is an integer of at least ``low``.

    Example:
        >>> check_count("history", 0)
        Traceback (most recent call last):
        ValueError: history is 0; expected an integer of at least 1
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {low}")


def shrinking(norms: Tensor, bounds: Tensor | float) -> Tensor:
    """What to multiply by so that each norm is at most its bound; 1 where it is already, or where it is not finite.

    ``torch.nn.utils.clip_grad_norm_`` adds 1e-6 to the norm. Nothing is added here, as no norm above a bound is 0: a
    bound of 1e-6 is then met as well, and a second clip changes nothing.

    Example:
        >>> shrinking(torch.tensor([4.0, 0.5, float("inf")]), 1.0)
        tensor([0.2500, 1.0000, 1.0000])
    """
    return torch.where((norms > bounds) & norms.isfinite(), bounds / norms, 1.0)


def stretching(norms: Tensor, targets: Tensor | float, eps: float) -> Tensor:
    """What to multiply by so that each norm becomes its target; 1 where it is not finite.

    Example:
        >>> stretching(torch.tensor([4.0, 0.0, float("nan")]), 1.0, eps=1e-12)
        tensor([2.5000e-01, 1.0000e+12, 1.0000e+00])
    """
    return torch.where(norms.isfinite(), targets / norms.clamp(min=eps), 1.0)
