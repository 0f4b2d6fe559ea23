"""Tells if a text names the operation and the function where a program's numbers break."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sealed.base import Program

# Beside an operation's own name and that of its node in the graph, such as LogBackward0.
OTHER_NAMES = {
    "div": r"true_divide|divi(?:de|des|ded|sion)|(?<=\s)/(?=\s)",
    "mul": r"multipl(?:y|ies|ied|ication)|(?<=\s)\*(?=\s)",
    "pow": r"power|(?<=\s)\*\*(?=\s)",
    "matmul": r"mm|bmm|addmm|(?<=\s)@(?=\s)",
    "log": r"logarithm",
    "sqrt": r"square root",
    "exp": r"exponential",
    "std": r"deviation",
    "softmax": r"_softmax",
}


@dataclass(frozen=True)
class Place:
    """An operation in a function of a file.

    Attributes:
        operation: name of the torch function, such as ``div``.
        function: qualified name, such as ``Segmenter.dice``.
        file: name of the file without its folder.
        lines: numbers of the function's first line and of the one after its last.
    """

    operation: str
    function: str
    file: str
    lines: tuple[int, int]

    def has_operation(self, text: str) -> bool:
        """Return True if the text names the operation."""
        name = re.escape(self.operation)
        ways = rf"(?<![\w.])(?:torch\.|aten::|aten\.|F\.|\.)?{name}_?(?!\w)|(?<=\w)\.{name}\(|{name}Backward\d*"
        if other := OTHER_NAMES.get(self.operation):
            ways += rf"|(?<!\w)(?:{other})(?!\w)"
        return re.search(ways, text, re.IGNORECASE) is not None

    def has_function(self, text: str) -> bool:
        """Return True if the text names the function, or one of its lines with the file."""
        own = re.escape(self.function.rpartition(".")[2])
        ways = (
            rf"(?<!\w){re.escape(self.function)}(?!\w)",
            rf"(?<!\w){own}\(\)",
            rf"\b(?:in|of|by|function|method) [\"'`]?{own}[\"'`]?(?=\(|,|:|;|\.(?:\s|$)|$| at | on | line )",
        )
        return any(re.search(way, text) for way in ways) or any(map(self._holds, self._lines_in(text)))

    def is_named(self, texts: Sequence[str]) -> bool:
        """Return True if one of the texts names both."""
        return any(self.has_operation(text) and self.has_function(text) for text in texts)

    def _lines_in(self, text: str) -> list[int]:
        file = re.escape(self.file)
        before = re.findall(rf"{file}[\"'`]?(?::|,? line |:line )(\d+)", text)
        return [int(number) for number in (*before, *re.findall(rf"line (\d+) (?:of|in) \S*{file}", text))]

    def _holds(self, line: int) -> bool:
        return self.lines[0] <= line < self.lines[1]


def place_of(program: Program) -> Place | None:
    """Return where a program's numbers break, or None where it has no such place.

    Raises:
        AttributeError: when the program's file has no such function.
    """
    if not program.place:
        return None
    operation, function = program.place.split(" in ")
    found: object = sys.modules[program.make.__module__]
    for name in function.split("."):
        found = getattr(found, name)
    code = inspect.unwrap(found).__code__  # type: ignore[arg-type]
    lines, first = inspect.getsourcelines(code)
    return Place(operation, function, Path(code.co_filename).name, (first, first + len(lines)))
