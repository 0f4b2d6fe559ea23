"""Sentences of the command line: crashes, commands that can be typed as they are, and the nearest known name."""

from __future__ import annotations

import difflib
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from gradwatch.places import own_frames

_EXTRAS = {"cli": ("jsonargparse[signatures]", "scikit-learn"), "examples": ("scikit-learn",)}


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the nearest of the known names as a question; empty where none is near.

    Example:
        >>> did_you_mean("chekc", ["demo", "check", "cure"]), did_you_mean("x", ["demo"])
        ('; did you mean check?', '')
    """
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def as_typed(program: str, *args: str, module: str = "") -> str:
    """Return a command as it can be typed here: through this Python where its folder is not on the PATH.

    Args:
        program: the installed script.
        *args: of the command.
        module: the module to run in its place; empty where it has the script's name.

    Example:
        >>> as_typed("no-such-script", "--logdir", "my runs").endswith(" -m no-such-script --logdir 'my runs'")
        True
    """
    found = shutil.which(program)
    is_ours = found is not None and Path(found).parent == Path(sys.executable).parent
    start = [program] if is_ours else [sys.executable, "-m", module or program]
    return shlex.join([*start, *args])


def install_extra(extra: str) -> str:
    """Return in words that what an extra of gradwatch brings is not installed, and how to install it.

    It names the packages, not gradwatch: that is installed from a clone, and anybody may publish under its name.

    Example:
        >>> install_extra("examples").endswith("pip install scikit-learn")
        True
    """
    return f"not installed; it belongs to the extra {extra!r}: {as_typed('pip', 'install', *_EXTRAS[extra])}"


def crash_in_full(error: BaseException, *, whole: bool = False) -> str:
    """Return a traceback with the frames of the user's code alone, or all of them: also where none is the user's."""
    frames = own_frames(error)
    if whole or not frames:
        return "".join(traceback.format_exception(error)).rstrip()
    lines = traceback.StackSummary.from_list(frames).format()
    last = traceback.format_exception_only(error)
    head = "The training crashed, called through these lines of yours (--traceback shows all of them):\n"
    return "".join([head, *lines, *last]).rstrip()
