"""The terminal's summary of a step: a table of the layers, the findings, and what to do about them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradwatch.paths import unused_in_words
from gradwatch.progress import Judgement, judge_run
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.keys import layer_values
from gradwatch.reporting.text import clip_text, evidence_beyond, listed, number, open_kinds, percent, shortened, since

MOST_ROWS = 40
_HELP = {  # head of a column -> the line below the table that explains it
    "update/\nweight": "update/weight: size of the step over that of the weights; about 1e-3 is usual",
    "flow": "flow: gradient at the layer's output; each missing mark means 10x smaller",
}
_LOG_WIDTH = 120  # where the output is no terminal: rich would take 80
_SIDE_BY_SIDE_WIDTH = 120
_MOST_FINDINGS = 8
_ENDS = 5  # first and last layers that are always shown
_FLOW = 10  # marks for the largest gradient
_LAYER = "layer"
# Longest layer name and highest rank of a column: the first pair with which the table fits the width is taken.
_SIZES = ((40, 9), (28, 9), (28, 8), (28, 7), (20, 7), (20, 6), (20, 5), (20, 4), (14, 4), (14, 3), (14, 2), (14, 1))
_NUMBERS: tuple[tuple[str, str, Callable[[float], str], int], ...] = (
    ("grad\nnorm", "grad_norm", number, 2),
    ("weight\nnorm", "weight_norm", number, 8),
    ("update/\nweight", "update_to_weight", number, 5),
    ("output\ngrad", "grad_output_norm", number, 1),
    ("gain", "gain", number, 6),
    ("zero\n%", "zero_fraction", percent, 9),
    ("dead\n%", "dead_fraction", percent, 3),
    ("flat\n%", "saturated_fraction", percent, 3),
    ("NaN,\nInf", "nonfinite", number, 3),
)
_ONLY_IF_ABOVE_ZERO = ("zero_fraction", "nonfinite")


def print_summary(
    snapshot: Snapshot,
    findings: Sequence[Finding] = (),
    diagnoses: Sequence[Diagnosis] = (),
    title: str = "",
    console: Console | None = None,
    notes: Sequence[str] = (),
    history: Sequence[Snapshot] = (),
) -> None:
    """Print a :class:`Summary`, and below it the notes about parts that could not be watched or written.

    In a file or a log it has no colours and is 120 characters wide, unless COLUMNS is set.
    """
    (console or wide_console()).print(Summary(snapshot, findings, diagnoses, title, notes, history))


def wide_console() -> Console:
    """Return the terminal, or where the output goes elsewhere, a page that is wide enough for the table."""
    console = Console()
    is_log = not console.is_terminal and not console.is_jupyter and "COLUMNS" not in os.environ
    return Console(width=_LOG_WIDTH) if is_log else console


@dataclass(frozen=True)
class Summary:
    """A step's layers, the findings, and for each open one its cause and the first thing to try.

    It is a renderable of rich, and fits itself to the width it is given. With a history it tells what a clip did.
    """

    snapshot: Snapshot
    findings: Sequence[Finding] = ()
    diagnoses: Sequence[Diagnosis] = ()
    title: str = ""
    notes: Sequence[str] = ()
    history: Sequence[Snapshot] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the table, the run's own numbers, and the findings."""
        mark = "#" if options.ascii_only else "\N{BLACK SQUARE}"
        title = self.title or f"gradwatch: gradients at step {self.snapshot.step}"
        table = layer_table(self.snapshot, self.findings, title, options.max_width, mark)
        yield table
        heads = {str(column.header) for column in table.columns}
        helps = [line for head, line in _HELP.items() if head in heads]
        lines = [*helps, _totals(self.snapshot), self._course(), clip_text(self.history), unused_in_words(self.history)]
        yield Text("\n" + "".join(f"{line}\n" for line in lines if line), style="dim")
        yield from self._findings()
        for note in self.notes:
            yield Text(note, style="yellow")

    @cached_property
    def _judgement(self) -> Judgement:
        others = [finding for finding in self.findings if finding.is_open and finding.kind != "spike"]
        return judge_run(self.history, is_suspect=bool(others))

    def _course(self) -> str:
        judgement = self._judgement
        if judgement.course == "learns" and math.isinf(self.snapshot.loss):
            return f"loss {judgement.start:.3g} -> {judgement.now:.3g}, then NaN or Inf"
        return str(judgement) if self.history and judgement.steps else ""

    def _findings(self) -> Iterator[RenderableType]:
        ordered = sorted(self.findings, key=lambda finding: not finding.is_open)
        alone = [diagnosis for diagnosis in self.diagnoses if not diagnosis.findings]
        if not ordered and not alone:
            is_short = self._judgement.course == "too few steps"
            yield Text("No fault found so far." if is_short else "No finding.", style="bold green")
        for diagnosis in alone:
            yield Text(f"{diagnosis.cause}, no finding yet", style="bold yellow")
            yield Padding(Text("\n".join(_advice(diagnosis))), (0, 0, 0, 2))
        for finding in ordered[:_MOST_FINDINGS]:
            yield from _finding(finding, [d for d in self.diagnoses if finding in d.findings][:1])
        if len(ordered) > _MOST_FINDINGS:
            yield Text(f"... and {len(ordered) - _MOST_FINDINGS} more findings", style="dim")


@dataclass(frozen=True)
class SideBySide:
    """Two summaries side by side from 120 columns on, one below the other on a narrower terminal."""

    left: RenderableType
    right: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render both as wide as there is room."""
        if options.max_width < _SIDE_BY_SIDE_WIDTH:
            yield Group(self.left, Text(), self.right)
            return
        grid = Table.grid(padding=(0, 4, 0, 0), pad_edge=False)
        for _ in range(2):
            grid.add_column(width=(options.max_width - 4) // 2)
        grid.add_row(self.left, self.right)
        yield grid


def _totals(snapshot: Snapshot) -> str:
    parts = {
        "step": str(snapshot.step),
        "loss": "NaN or Inf" if math.isinf(snapshot.loss) else number(snapshot.loss),
        "total gradient norm": number(snapshot.total_norm),
        "after clipping": number(snapshot.total_norm_after) if snapshot.clip_coefficient < 1 else "",
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _finding(finding: Finding, diagnoses: Sequence[Diagnosis]) -> Iterator[RenderableType]:
    until = "open" if finding.closed_step is None else f"gone at step {finding.closed_step}"
    style = "dim" if not finding.is_open else "bold red" if finding.severity == "error" else "bold yellow"
    yield Text(f"{finding.kind} since step {finding.step}, {until}: {listed(finding.layers)}", style=style)
    if finding.is_open:
        advice = [line for diagnosis in diagnoses for line in _advice(diagnosis, finding.message)]
        lines = [*filter(None, (finding.message, since(finding))), *advice]
        yield Padding(Text("\n".join(lines)), (0, 0, 0, 2))


def _advice(diagnosis: Diagnosis, said: str = "") -> list[str]:
    tries = [f"Try first: {'; then '.join(diagnosis.remedies[:2])}."] if diagnosis.remedies else []
    return [f"Cause: {diagnosis.cause}. {evidence_beyond(diagnosis, said)}".rstrip(), *tries]


def layer_table(
    snapshot: Snapshot, findings: Iterable[Finding] = (), title: str = "", width: int = 120, mark: str = "#"
) -> Table:
    """Return a table of a step's layers in network order, with the open findings in the last column.

    Columns without any value are left out, and so are the least useful ones where ``width`` has no room. Of more than
    40 layers the first, the last and those with a finding are shown, and a row gives the number of the others.
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


@dataclass(frozen=True)
class Column:
    """One column as text; columns of the highest rank are dropped first when there is no room."""

    head: str
    cells: tuple[str, ...]
    rank: int
    is_text: bool = False

    def width(self, rows: Sequence[int]) -> int:
        """Return the characters that these rows take, with one between it and the next column."""
        gap = _gap(len(self.cells)) if self.head == _LAYER and len(rows) < len(self.cells) else ""
        return max(map(len, [gap, *self.head.split("\n"), *(self.cells[row] for row in rows)])) + 1


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
    largest = norms[np.isfinite(norms)].max(initial=0.0)
    return tuple(_marks(norm, largest, mark) for norm in norms.tolist())


def _marks(norm: float, largest: float, mark: str) -> str:
    if not 0 < norm < math.inf:
        return "NaN/Inf" if math.isinf(norm) else ""
    return mark * max(round(_FLOW + math.log10(norm / largest)), 0) or "."


def _fitting(columns: Sequence[Column], kept: Sequence[int], width: int) -> list[Column]:
    """Return as many columns as fit, with layer names shortened where that makes room."""
    for longest, rank in _SIZES:
        names = tuple(shortened(name, longest) for name in columns[0].cells)
        shown = [replace(columns[0], cells=names), *(column for column in columns[1:] if column.rank <= rank)]
        if sum(column.width(kept) for column in shown) - 1 <= width:
            break
    return shown


def _kept_rows(flagged: Sequence[bool]) -> list[int]:
    """Return the rows to show: all of a small network, else both ends and the flagged, with no gap of a single row."""
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
