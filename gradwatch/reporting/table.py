"""One step as a table: a row a layer, as many columns as the terminal has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.keys import layer_values
from gradwatch.reporting.words import number, open_kinds, percent, shortened

MOST_ROWS = 40
FLOW_HELP = "flow: ten marks for the largest gradient at a layer's output, one less for each power of ten below it"
_ENDS = 5  # first and last layers that stay when rows are left out
_FLOW = 10
_LAYER = "layer"
# Longest layer name and highest rank of a column, the roomiest first.
_SIZES = ((40, 9), (28, 9), (28, 8), (28, 7), (20, 7), (20, 6), (20, 5), (20, 4), (14, 4), (14, 3), (14, 2), (14, 1))
_NUMBERS: tuple[tuple[str, str, Callable[[float], str], int], ...] = (
    ("grad\nnorm", "grad_norm", number, 2),
    ("weight\nnorm", "weight_norm", number, 8),
    ("grad/\nweight", "grad_to_weight_ratio", number, 5),
    ("output\ngrad", "grad_output_norm", number, 1),
    ("gain", "gain", number, 6),
    ("zero\n%", "zero_fraction", percent, 9),
    ("dead\n%", "dead_fraction", percent, 3),
    ("flat\n%", "saturated_fraction", percent, 3),
    ("NaN,\nInf", "nonfinite", number, 3),
)
_ONLY_IF_ABOVE_ZERO = ("zero_fraction", "nonfinite")


@dataclass(frozen=True)
class Column:
    """One column as text; the higher its rank, the sooner it goes when there is no room."""

    head: str
    cells: tuple[str, ...]
    rank: int
    is_text: bool = False

    def width(self, rows: Sequence[int]) -> int:
        """Characters that these rows take, with one between it and the next column."""
        gap = _gap(len(self.cells)) if self.head == _LAYER and len(rows) < len(self.cells) else ""
        return max(map(len, [gap, *self.head.split("\n"), *(self.cells[row] for row in rows)])) + 1


def layer_table(
    snapshot: Snapshot, findings: Iterable[Finding] = (), title: str = "", width: int = 120, mark: str = "#"
) -> Table:
    r"""The layers of a step in network order, those in an open finding marked in the last column.

    Columns without any value are left out, and so are the least telling ones that ``width`` has no room for. Of more
    than 40 layers the first, the last and those with a finding stay, and a row says how many are left out.

    Args:
        snapshot: the step.
        findings: the open ones are shown.
        title: goes above the table.
        width: of the terminal, in characters.
        mark: character of the bars in the column ``flow``.

    Example:
        >>> table = layer_table(Snapshot(0, ("a", "b"), grad_norm=[1e-3, 1.0]))
        >>> [column.header.plain for column in table.columns]
        ['layer', 'grad\nnorm']
    """
    kinds = open_kinds(snapshot, findings)
    kept = _kept_rows([layer in kinds for layer in snapshot.layers])
    columns = _fitting(_columns(snapshot, kinds, mark), kept, width)
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, padding=0
    )  # fmt: skip
    for column in columns:
        table.add_column(Text(column.head), justify="left" if column.is_text else "right", no_wrap=True)
    for before, row in pairwise([-1, *kept]):
        if row - before > 1:
            table.add_row(_gap(row - before - 1), *[""] * (len(columns) - 1), style="dim")
        style = "bold red" if snapshot.layers[row] in kinds else None
        table.add_row(*(Text(column.cells[row]) for column in columns), style=style)
    return table


def _gap(count: int) -> str:
    return f"... {count} more"


def _columns(snapshot: Snapshot, kinds: dict[str, tuple[str, ...]], mark: str) -> list[Column]:
    texts = [
        Column(_LAYER, snapshot.layers, 0, is_text=True),
        Column("kind", snapshot.kinds, 7, is_text=True),
        *(Column(head, _cells(snapshot, name, shown), rank) for head, name, shown, rank in _NUMBERS),
        Column("flow", _flow(snapshot, mark), 4, is_text=True),
        Column("finding", tuple(", ".join(kinds.get(layer, ())) for layer in snapshot.layers), 0, is_text=True),
    ]
    return [column for column in texts if column.head == _LAYER or any(column.cells)]


def _cells(snapshot: Snapshot, name: str, shown: Callable[[float], str]) -> tuple[str, ...]:
    values = layer_values(snapshot, name)
    if name in _ONLY_IF_ABOVE_ZERO and not (values > 0).any():
        return ("",) * len(values)
    return tuple(shown(value) for value in values.tolist())


def _flow(snapshot: Snapshot, mark: str) -> tuple[str, ...]:
    norms = snapshot.grad_output_norm
    loudest = norms[np.isfinite(norms)].max(initial=0.0)
    return tuple(_marks(norm, loudest, mark) for norm in norms.tolist())


def _marks(norm: float, loudest: float, mark: str) -> str:
    if not 0 < norm < math.inf:
        return "NaN/Inf" if math.isinf(norm) else ""
    return mark * max(round(_FLOW + math.log10(norm / loudest)), 0) or "."


def _fitting(columns: Sequence[Column], kept: Sequence[int], width: int) -> list[Column]:
    """The most telling columns that fit."""
    for longest, rank in _SIZES:
        names = tuple(shortened(name, longest) for name in columns[0].cells)
        shown = [replace(columns[0], cells=names), *(column for column in columns[1:] if column.rank <= rank)]
        if sum(column.width(kept) for column in shown) - 1 <= width:
            break
    return shown


def _kept_rows(flagged: Sequence[bool]) -> list[int]:
    """Which rows are shown: all of a small network, else both ends and the flagged, with no gap of a single row."""
    count = len(flagged)
    if count <= MOST_ROWS:
        return list(range(count))
    ends = {*range(_ENDS), *range(count - _ENDS, count)}
    between = [row for row in range(_ENDS, count - _ENDS) if flagged[row]]
    for half in range(MOST_ROWS // 2, 0, -1):
        kept = ends.union(between[:half], between[-half:])
        kept |= {row for row in range(1, count - 1) if row - 1 in kept and row + 1 in kept}
        if len(kept) <= MOST_ROWS:
            break
    return sorted(kept)
