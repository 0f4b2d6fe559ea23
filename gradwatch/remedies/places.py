"""Lines of a user's code."""

from __future__ import annotations

import sys

_LIBRARIES = {"lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "gradwatch"}


def users_line() -> str:
    """``file:line`` of the code that called a function of torch; empty where a library did, or gradwatch itself."""
    frame = sys._getframe(1)
    while frame is not None and (name := _module_of(frame)).startswith(("torch.", "gradwatch.remedies.")):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or (name.partition(".")[0] in _LIBRARIES and not name.startswith("gradwatch.examples")):
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _module_of(frame: object) -> str:
    return f"{getattr(frame, 'f_globals', {}).get('__name__', '')}."


def split(place: str) -> tuple[str, int]:
    """The file and the line of a place.

    Example:
        >>> split("model.py:41")
        ('model.py', 41)
    """
    file, _, line = place.rpartition(":")
    return file, int(line)
