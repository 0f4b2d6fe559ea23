"""What is done when a finding opens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

from gradwatch.records import Finding, GradientError, GradientWarning

OnFinding = Literal["warn", "stop", "raise"] | Callable[[Finding], object]


def require_on_finding(value: OnFinding) -> OnFinding:
    """The value, or a ValueError if it is not known.

    Example:
        >>> require_on_finding("explode")
        Traceback (most recent call last):
            ...
        ValueError: on_finding is 'explode'; expected 'warn', 'stop', 'raise' or a function of the Finding
    """
    if not callable(value) and value not in ("warn", "stop", "raise"):
        raise ValueError(f"on_finding is {value!r}; expected 'warn', 'stop', 'raise' or a function of the Finding")
    return value


def announce(finding: Finding, on_finding: OnFinding, *, aloud: bool = True) -> bool:
    """Warn, raise or call; returns whether training should stop.

    Args:
        finding: what opened.
        on_finding: what is done then.
        aloud: whether this process is the one that warns.

    Raises:
        GradientError: when ``on_finding`` is ``"raise"``.

    Example:
        >>> announce(Finding("vanishing", ("a",), 0, 1e-7, 1e-3, "it vanishes"), lambda finding: print(finding.kind))
        vanishing
        False
    """
    if callable(on_finding):
        on_finding(finding)
        return False
    if on_finding == "raise":
        raise GradientError(finding)
    if aloud:
        warnings.warn(finding.message, GradientWarning, stacklevel=2)
    return on_finding == "stop"
