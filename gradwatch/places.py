"""Places in the user's code: the line that is running, or that raised, and the layer it belongs to."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gradwatch.containment import error_in_words, library_module

if TYPE_CHECKING:
    from torch import nn

_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep


@dataclass(frozen=True)
class Place:
    """A line of the user's code.

    Attributes:
        line: file, from the current folder on, and line; empty where no code of the user's ran.
        function: the function that it is in.
        layer: name of the innermost module that ran; empty where none did.

    Example:
        >>> print(Place("model.py:31", "magnitude", "encoder"))
        layer encoder, model.py:31, in magnitude
    """

    line: str = ""
    function: str = ""
    layer: str = ""

    def __str__(self) -> str:
        parts = [f"layer {self.layer}" if self.layer else "", self.line, f"in {self.function}" if self.function else ""]
        return ", ".join(part for part in parts if part)


def running_place(frame: FrameType | None, names: Mapping[int, str]) -> Place:
    """Return the place that runs in a frame, or called it; ``names`` gives the name of a module by its id."""
    return _place(_outwards(frame), names)


def raised_at(error: BaseException, model: nn.Module | None = None) -> Place:
    """Return the place that raised an error.

    Example:
        >>> from torch import nn
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         assert x.dim() == 3
        >>> try:
        ...     Net()(nn.Parameter())
        ... except AssertionError as error:
        ...     raised_at(error).function
        'forward'
    """
    steps, trace = [], error.__traceback__
    while trace is not None:
        steps.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return _place(reversed(steps), names_of(model) if model is not None else {})


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of the user's code in an error's traceback, outermost first; files from the current folder on.

    Example:
        >>> from torch import nn
        >>> try:
        ...     nn.Linear(2, 1)(nn.Parameter())
        ... except RuntimeError as error:
        ...     [frame.name for frame in own_frames(error)]
        ['<module>']
    """
    walked = traceback.walk_tb(error.__traceback__)
    return [
        traceback.FrameSummary(_shown(frame.f_code.co_filename), number, frame.f_code.co_name)
        for frame, number in walked
        if not _is_of_library(frame) and not _is_installed(frame)
    ]


def crash_in_words(error: BaseException, model: nn.Module) -> str:
    """Return an error with the place that raised it, in a sentence.

    Example:
        >>> from torch import nn
        >>> crash_in_words(KeyError("a"), nn.Identity())
        "The training raised KeyError: 'a'."
    """
    place = str(raised_at(error, model))
    return f"The training raised {error_in_words(error)}{f' at {place}' if place else ''}."


def names_of(model: nn.Module) -> dict[int, str]:
    """Return the names of a model's modules, by their ids; the model itself has none."""
    return {id(module): name for name, module in model.named_modules() if name}


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _place(steps: Iterable[tuple[FrameType, int]], names: Mapping[int, str]) -> Place:
    """Return the innermost line that no library has, else that of a library other than torch, and the layer."""
    line = function = installed = inside = layer = ""
    for frame, number in steps:
        code = frame.f_code
        if not layer and code.co_argcount and code.co_varnames[0] == "self":
            layer = names.get(id(frame.f_locals.get("self")), "")
        if line or _is_of_library(frame):
            continue
        is_installed = "site-packages" in code.co_filename
        if not _is_installed(frame):
            line, function = f"{_shown(code.co_filename)}:{number}", code.co_name
        elif is_installed and not installed:
            installed, inside = f"{_shown(code.co_filename)}:{number}", code.co_name
        if line and layer:
            break
    return Place(line or installed, function if line else inside, layer)


def _is_of_library(frame: FrameType) -> bool:
    return bool(library_module(frame)) or frame.f_code.co_filename.startswith(_STANDARD + "python")


def _is_installed(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return "site-packages" in path or path.startswith(_STANDARD)


def _shown(path: str) -> str:
    if path.startswith("<"):
        return path
    full, here = Path(path).resolve(), Path.cwd().resolve()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else str(full)
