"""Lines of a user's code."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_OTHERS = str(Path(torch.__file__).parent), str(Path(__file__).parent)


def caller() -> str:
    """``file:line`` of the nearest caller outside of torch and of the remedies; empty where there is none."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OTHERS):
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def split(place: str) -> tuple[str, int]:
    """The file and the line of a place.

    Example:
        >>> split("model.py:41")
        ('model.py', 41)
    """
    file, _, line = place.rpartition(":")
    return file, int(line)
