"""A figure that touches no global state of matplotlib, the axes that all pictures share, and the way to pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwatch.reporting.words import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 50
NO_MATPLOTLIB = "pictures need matplotlib, which is not installed; install it with: pip install matplotlib"


def new_figure(rows: int) -> tuple[Figure, Axes]:
    """A figure high enough for so many labelled rows, on matplotlib's own canvas: pyplot never hears of it.

    It is small in inches, so that its letters can still be read in the small cards of TensorBoard's Images tab.

    Raises:
        ImportError: when matplotlib is missing; it says how to install it.

    Example:
        >>> figure, axes = new_figure(rows=15)
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    labels = len(every_so_many(rows, MOST_LABELS))
    figure = Figure(figsize=(6.0, 1.9 + 0.165 * max(labels, 10)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def png(figure: Figure) -> tuple[bytes, int, int]:
    """The picture as a PNG, and its height and width in pixels; the figure can't be used afterwards.

    Example:
        >>> content, height, width = png(new_figure(rows=1)[0])
        >>> content[1:4], height, width
        (b'PNG', 532, 900)
    """
    canvas: Any = figure.canvas
    with BytesIO() as file:
        canvas.print_png(file)
        width, height = canvas.get_width_height()
        content = file.getvalue()
    figure.clear()
    return content, height, width


def as_text(name: str) -> str:
    r"""Return a name that matplotlib shows as it is: two dollar signs would make a formula of what is between them.

    Example:
        >>> as_text("cost_$x_$")
        'cost_\\$x_\\$'
    """
    return name.replace("$", r"\$")


def every_so_many(count: int, most: int) -> list[int]:
    """Positions out of ``count`` at an even stride, at most about so many, the last one among them.

    Example:
        >>> every_so_many(4, 10), every_so_many(11, 4)
        ([0, 1, 2, 3], [0, 3, 6, 10])
    """
    stride = -(-count // most) or 1
    return [*range(0, count - stride, stride), count - 1] if count else []


def label_layers(axes: Axes, names: Sequence[str]) -> None:
    """One row a layer, the input at the top as in the table on the terminal; of many rows every so many is labelled."""
    rows = every_so_many(len(names), MOST_LABELS)
    axes.set_yticks(rows, [as_text(shortened(names[row], 34)) for row in rows], fontsize=9)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    left_out = "" if len(rows) == len(names) else f"; {len(rows)} of {len(names)} are labelled"
    axes.set_ylabel(f"loss  <-  layers  <-  input{left_out}")


def add_title(axes: Axes, text: str) -> None:
    """Over the whole width: long layer names leave the axes little of it."""
    figure: Any = axes.figure
    figure.suptitle(as_text(text), x=0.01, ha="left", fontsize=9)


def add_legend(axes: Axes, colours: Mapping[str, str]) -> None:
    """Name the colours below the picture; nothing where there are none."""
    from matplotlib.patches import Patch

    figure: Any = axes.figure
    if colours:
        patches = [
            Patch(facecolor=colour, edgecolor="#808080", label=as_text(label)) for label, colour in colours.items()
        ]
        figure.legend(handles=patches, loc="outside lower right", ncols=len(patches), fontsize=9, frameon=False)


def log_ticks(low: float, high: float, most: int = 9) -> list[int]:
    """Powers of ten between two of them, evenly spaced.

    Example:
        >>> log_ticks(-26, 0)
        [-24, -21, -18, -15, -12, -9, -6, -3, 0]
    """
    first, last = int(np.ceil(low)), int(np.floor(high))
    stride = next(s for s in (1, 2, 3, 4, 5, 10, 20, 50, 100, 1000) if (last - first) / s < most)
    return [power for power in range(first, last + 1) if power % stride == 0]
