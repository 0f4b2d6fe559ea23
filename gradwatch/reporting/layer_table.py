"""The terminal's table of a step's layers: repeated blocks are folded, and the columns fit the room there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.blocks import Row, Spread, extremes, rows_of
from gradwatch.reporting.keys import layer_values
from gradwatch.reporting.short_names import common_prefix, short_names
from gradwatch.reporting.text import listed, number, open_kinds, percent

MOST_ROWS = 40
_MOST_LINES = 45  # of a table with folded rows, which take three each: with its head and its notes it fills a screen
_ENDS = 5  # first and last rows that are always shown
_FLOW = 10  # marks for the largest gradient
_LAYER = "layer"
_ROOM_FOR_NAMES = 24  # columns of lesser rank are dropped before names get less than this
_HELP = {  # head of a column -> the line below the table that explains it
    "update/\nweight": "update/weight: size of the step over that of the weights; about 1e-3 is usual",
    "flow": "flow: gradient at the layer's output; each missing mark means 10x smaller",
}


def _nonfinite_or(shown: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: "NaN/Inf" if math.isinf(value) else shown(value)


def _count(value: float) -> str:
    return f"{value:.0f}" if value < 1e5 else number(value)


# Head, column of the Snapshot, its text, and a rank: columns of the highest rank are dropped first.
_NUMBERS: tuple[tuple[str, str, Callable[[float], str], int], ...] = (
    ("grad\nnorm", "grad_norm", _nonfinite_or(number), 2),
    ("weight\nnorm", "weight_norm", _nonfinite_or(number), 8),
    ("update/\nweight", "update_to_weight", _nonfinite_or(number), 5),
    ("output\ngrad", "grad_output_norm", _nonfinite_or(number), 1),
    ("gain", "gain", _nonfinite_or(number), 6),
    ("zero\n%", "zero_fraction", percent, 9),
    ("dead\n%", "dead_fraction", percent, 4),
    ("flat\n%", "saturated_fraction", percent, 4),
    ("NaN,\nInf", "nonfinite", _count, 4),
)
_ONLY_IF_ABOVE_ZERO = ("zero_fraction", "nonfinite")
_EXTREME_IN = ("grad_norm", "update_to_weight")  # columns whose lowest and highest layer keep rows of their own


@dataclass(frozen=True)
class LayerTable:
    """A step's layers in network order, with the open findings in the last column, and notes below.

    Of many layers, repeated blocks are folded into a row. What is sick, or has the largest or smallest gradient or
    update, keeps its own row, and so do the first and the last layer. Columns without any value are left out, and so
    are the least useful ones where there is no room. ``lines`` are printed below the notes.

    Example:
        >>> names = tuple(f"net.layers.{i}.{end}" for i in range(99) for end in ("fc", "norm"))
        >>> Console(width=120).print(LayerTable(Snapshot(0, names, grad_norm=[*range(1, 199)])))
                             grad
        layer                norm
        ─────────────────────────
        net.layers.0.fc      1.00
        net.layers.0-97.norm 99.0
          lowest             2.00
          highest             196
        net.layers.1-98.fc    100
          lowest             3.00
          highest             197
        net.layers.98.norm    198
        <BLANKLINE>
        several layers in a row, such as net.layers.0-97.norm: the median, below it the lowest and the highest
    """

    snapshot: Snapshot
    findings: Sequence[Finding] = ()
    title: str = ""
    lines: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render table and notes as wide as there is room."""
        mark = "#" if options.ascii_only else "\N{BLACK SQUARE}"
        layout = Layout(self.snapshot, tuple(self.findings), options.max_width, mark)
        yield layout.table(self.title)
        if notes := [*layout.notes(), *unwatched_in_words(self.snapshot), *self.lines]:
            yield Text("\n" + "\n".join(notes), style="dim")


@dataclass(frozen=True)
class Column:
    """One column as text, a cell for each row; columns of the highest rank are dropped first when there is no room."""

    head: str
    cells: tuple[str, ...]
    rank: int
    is_text: bool = False

    @property
    def width(self) -> int:
        """Return the characters that the column takes, with one between it and the next column."""
        return max(len(line) for text in (self.head, *self.cells) for line in text.split("\n")) + 1


@dataclass(frozen=True)
class Layout:
    """The rows and the columns that are shown in a given width."""

    snapshot: Snapshot
    findings: tuple[Finding, ...] = ()
    width: int = 120
    mark: str = "#"

    def table(self, title: str = "") -> Table:
        """Return the table for rich."""
        table = Table(title=title or None, title_justify="left", title_style="bold")
        table.box, table.show_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0, 0, 0)
        for column in self.columns:
            is_name = column.head == _LAYER  # where even the names have no room, they go on in the next line
            justify: Literal["left", "right"] = "left" if column.is_text else "right"
            table.add_column(Text(column.head), justify=justify, no_wrap=not is_name, overflow="fold")
        for before, place in pairwise([-1, *self._kept]):
            if place - before > 1:
                table.add_row(_gap(place - before - 1), *[""] * (len(self.columns) - 1), style="dim")
            style = "bold red" if self._marks[self.rows[place].members[0]] else None
            table.add_row(*(Text(column.cells[place]) for column in self.columns), style=style)
        return table

    def notes(self) -> Iterator[str]:
        """Yield in words how to read the table, and what is left out of it."""
        shown = {column.head for column in self.columns}
        yield from (line for head, line in _HELP.items() if head in shown)
        names = [row.name for row in self.rows]
        if self._short != names and (prefix := common_prefix(names)):
            yield f"all names begin with {prefix}"
        folded = [place for place in self._kept if self.rows[place].is_folded]
        if folded:
            rest = ", below it the lowest and the highest" if self._is_stacked else ""
            yield f"several layers in a row, such as {self._short[folded[0]]}: the median{rest}"
        if dropped := [
            column.head.replace("/\n", "/").replace("\n", " ") for column in self._all if column.head not in shown
        ]:
            yield f"no room for: {', '.join(dropped)}"

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the whole network."""
        snapshot = self.snapshot
        columns = [layer_values(snapshot, name).tolist() for name in _EXTREME_IN]
        apart = {0, len(snapshot.layers) - 1} | extremes(*columns)
        return rows_of(snapshot.layers, snapshot.kinds, self._marks, apart, MOST_ROWS)

    @cached_property
    def columns(self) -> list[Column]:
        """As many columns as fit, with names shortened where that makes room."""
        return [self._named(self._short), *(column for column in self._all if column.rank <= self._fitting[0])]

    @property
    def _short(self) -> list[str]:
        return self._fitting[1]

    @cached_property
    def _fitting(self) -> tuple[int, list[str]]:
        """The highest rank of a column that is shown, and the names in the room that is left."""
        names = [row.name for row in self.rows]
        whole = short_names(names, self.width)
        for rank in sorted({column.rank for column in self._all} | {0}, reverse=True):
            room = self.width - sum(self._only_kept(column).width for column in self._all if column.rank <= rank)
            short = short_names(names, room)
            fits = self._only_kept(self._named(short)).width - 1 <= room
            if fits and (short == whole or room >= _ROOM_FOR_NAMES):
                break
        return rank, short

    @cached_property
    def _all(self) -> list[Column]:
        """All columns with any value, without the names."""
        texts = [
            Column("kind", tuple(map(self._kind, self.rows)), 2, is_text=True),
            *(Column(head, self._cells(name, shown), rank) for head, name, shown, rank in _NUMBERS),
            Column("flow", self._flow(), 3, is_text=True),
            Column("finding", tuple(self._marks[row.members[0]] for row in self.rows), 0, is_text=True),
        ]
        return [column for column in texts if any(column.cells)]

    @cached_property
    def _marks(self) -> list[str]:
        kinds = open_kinds(self.snapshot, self.findings)
        return [", ".join(kinds.get(layer, ())) for layer in self.snapshot.layers]

    @cached_property
    def _kept(self) -> list[int]:
        return _kept_rows([bool(self._marks[row.members[0]]) for row in self.rows])

    @cached_property
    def _is_stacked(self) -> bool:
        return sum(3 if self.rows[place].is_folded else 1 for place in self._kept) <= _MOST_LINES

    def _only_kept(self, column: Column) -> Column:
        gap = [_gap(len(self.rows))] if column.head == _LAYER and len(self._kept) < len(self.rows) else []
        return replace(column, cells=(*gap, *(column.cells[place] for place in self._kept)))

    def _named(self, names: Iterable[str]) -> Column:
        rest = "\n  lowest\n  highest" if self._is_stacked else ""
        cells = (f"{name}{rest if row.is_folded else ''}" for name, row in zip(names, self.rows, strict=True))
        return Column(_LAYER, tuple(cells), 0, is_text=True)

    def _kind(self, row: Row) -> str:
        kind = self.snapshot.kinds[row.members[0]]
        return f"{kind} x{len(row.members)}" if row.is_folded and kind else kind

    def _cells(self, name: str, shown: Callable[[float], str]) -> tuple[str, ...]:
        values = layer_values(self.snapshot, name)
        if name in _ONLY_IF_ABOVE_ZERO and not (values > 0).any():
            return ("",) * len(self.rows)
        return tuple(self._cell(values[list(row.members)].tolist(), shown) for row in self.rows)

    def _cell(self, values: Sequence[float], shown: Callable[[float], str]) -> str:
        """Return the value of a row; of several layers the median, and below it the lowest and the highest."""
        if len(values) == 1:
            return shown(values[0])
        texts = [shown(value) for value in vars(Spread.of(values)).values()]
        return "\n".join(texts) if self._is_stacked and len(set(texts)) > 1 else texts[0]

    def _flow(self) -> tuple[str, ...]:
        norms = self.snapshot.grad_output_norm
        largest = norms[np.isfinite(norms)].max(initial=0.0)
        return self._cells("grad_output_norm", lambda norm: _marks(norm, largest, self.mark))


def layer_table(
    snapshot: Snapshot, findings: Iterable[Finding] = (), title: str = "", width: int = 120, mark: str = "#"
) -> Table:
    """Return the table alone, as :class:`LayerTable` shows it."""
    return Layout(snapshot, tuple(findings), width, mark).table(title)


def unwatched_in_words(snapshot: Snapshot) -> Iterator[str]:
    """Yield in words which layers of a step were not called or not read, and what is frozen.

    Example:
        >>> step = Snapshot(3, ("a", "b"), grad_norm=[1, 1], ran=[0, np.nan], params=("b.bias",), frozen_size=1e6)
        >>> list(unwatched_in_words(step))
        ['not called in step 3: a', 'output not read, as no hook is called there: b', 'frozen: 1,000,000 weights']
    """
    names = np.array(snapshot.layers, object)
    if resting := names[snapshot.ran == 0].tolist():
        yield f"not called in step {snapshot.step}: {listed(resting)}"
    unread = np.isnan(snapshot.ran) & np.isnan(snapshot.grad_output_norm) & (snapshot.grad_norm >= 0)
    if snapshot.params and (hidden := names[unread].tolist()):
        yield f"output not read, as no hook is called there: {listed(hidden)}"
    if snapshot.frozen_size > 0:
        yield f"frozen: {snapshot.frozen_size:,.0f} weights"


def _gap(count: int) -> str:
    return f"... {count} more"


def _marks(norm: float, largest: float, mark: str) -> str:
    if not 0 < norm < math.inf:
        return "NaN/Inf" if math.isinf(norm) else ""
    return mark * max(round(_FLOW + math.log10(norm / largest)), 0) or "."


def _kept_rows(flagged: Sequence[bool]) -> list[int]:
    """Return the rows to show: all where they are few, else both ends and the flagged, with no gap of a single row."""
    count = len(flagged)
    if count <= MOST_ROWS:
        return list(range(count))
    ends = {*range(_ENDS), *range(count - _ENDS, count)}
    between = [row for row in range(_ENDS, count - _ENDS) if flagged[row]]
    for half in range(MOST_ROWS // 2, 0, -1):
        kept = ends.union(between[:half], between[-half:])
        kept |= {row for row in range(1, count - 1) if row - 1 in kept and row + 1 in kept}
        gaps = sum(row + 1 not in kept for row in kept)  # each takes a row too
        if len(kept) + gaps <= MOST_ROWS:
            break
    return sorted(kept)
