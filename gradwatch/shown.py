"""The base of all that rich prints, and a notebook displays, as a table in place of a raw repr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import singledispatch
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

WIDTH = 110  # characters of a line in a notebook, whose cells are about that wide; longer lines are scrolled
_PAGE = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;margin:0;'
    "font-family:Menlo,'DejaVu Sans Mono',Consolas,'Courier New',monospace\">{code}</pre>"
)
# Colours that can be read on a white page and on a dark one, in the order of a terminal's: black, red, green, yellow,
# blue, magenta, cyan, white.
_COLOURS = [
    (64, 64, 64), (214, 39, 40), (30, 140, 60), (176, 122, 0), (31, 119, 180), (160, 80, 180), (20, 140, 150),
    (128, 128, 128),
]  # fmt: skip


@singledispatch
def parts_of(value: object, options: ConsoleOptions) -> Iterable[RenderableType]:
    """Return what is shown of a value. Records know nothing of tables: ``reporting`` registers a function for each."""
    from rich.text import Text

    return [Text(repr(value))]


class Shown:
    """A value that rich and notebooks show as :func:`parts_of` says; a class may say it itself.

    Example:
        >>> Shown()._repr_html_().count("</pre>")
        1
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the parts, one below the other."""
        yield from parts_of(self, options)

    def _repr_html_(self) -> str:
        return as_html(self)


def as_html(renderable: Any, width: int = WIDTH) -> str:
    r"""Return the text that a terminal of that width would show as HTML, with all names of layers escaped.

    Example:
        >>> from rich.text import Text
        >>> as_html(Text("<script>", style="bold")).partition(">")[2]
        '<span style="font-weight: bold">&lt;script&gt;</span>\n</pre>'
    """
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme

    console = Console(record=True, file=StringIO(), width=width, force_jupyter=False, legacy_windows=False)
    console.print(renderable)
    theme = TerminalTheme((255, 255, 255), (0, 0, 0), _COLOURS)
    return console.export_html(theme=theme, code_format=_PAGE, inline_styles=True)
