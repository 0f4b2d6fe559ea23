"""Lines of a user's code."""

from __future__ import annotations

import sys
from types import FrameType

_LIBRARIES = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "gradwatch"}


def users_line(*through: str) -> str:
    """``file:line`` of the code that called a function of torch; empty where a library did, or gradwatch itself.

    Args:
        *through: modules, with all below them, whose callers are meant.
    """
    passed = tuple(f"{name}." for name in ("gradwatch.remedies", *through))
    frame = sys._getframe(1)
    while frame is not None and _module_of(frame).startswith(passed):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or _module_of(frame).partition(".")[0] in _LIBRARIES:
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _module_of(frame: FrameType) -> str:
    """Of its code, with a dot behind it; empty for what is a user's though it has such a name."""
    name = f"{frame.f_globals.get('__name__', '')}."
    is_typed = frame.f_code.co_filename.startswith("<")  # into a notebook, a prompt, a docstring
    return "" if is_typed or name.startswith("gradwatch.examples.") else name


def split(place: str) -> tuple[str, int]:
    """The file and the line of a place.

    Example:
        >>> split("model.py:41")
        ('model.py', 41)
    """
    file, _, line = place.rpartition(":")
    return file, int(line)
