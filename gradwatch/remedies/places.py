"""Lines of a user's code."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterable
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


def quoted(places: Iterable[str]) -> str:
    """The lines of code at these places, as comments.

    Example:
        >>> print(quoted(["no_such_file.py:41"]))
        # no_such_file.py:41:
    """
    split = ((place, *place.rsplit(":", 1)) for place in places)
    return "\n".join(f"# {place}: {linecache.getline(file, int(line)).strip()}".rstrip() for place, file, line in split)
