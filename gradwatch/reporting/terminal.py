"""What is printed on the terminal: the layers of a step, what is wrong with them, and what to try first."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.table import FLOW_HELP, layer_table
from gradwatch.reporting.words import listed, number

__all__ = ["Summary", "layer_table", "print_summary", "side_by_side", "summary"]

_LOG_WIDTH = 120  # where the output is no terminal: rich would take 80
_SIDE_BY_SIDE_WIDTH = 120
_MOST_FINDINGS = 8


@dataclass(frozen=True)
class Summary:
    """A rich renderable that fits itself to the width it is given."""

    snapshot: Snapshot
    findings: Sequence[Finding] = ()
    diagnoses: Sequence[Diagnosis] = ()
    title: str = ""
    notes: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the table, the run's own numbers, and the findings."""
        mark = "#" if options.ascii_only else "\N{BLACK SQUARE}"
        table = layer_table(self.snapshot, self.findings, self.title, options.max_width, mark)
        yield table
        has_flow = any(str(column.header) == "flow" for column in table.columns)
        yield Text("\n" + (f"{FLOW_HELP}\n" if has_flow else "") + _totals(self.snapshot) + "\n", style="dim")
        yield from self._findings()
        for note in self.notes:
            yield Text(note, style="yellow")

    def _findings(self) -> Iterator[RenderableType]:
        ordered = sorted(self.findings, key=lambda finding: not finding.is_open)
        alone = [diagnosis for diagnosis in self.diagnoses if not diagnosis.findings]
        if not ordered and not alone:
            yield Text("No finding.", style="bold green")
        for diagnosis in alone:
            yield Text(f"{diagnosis.cause}, without a finding", style="bold yellow")
            yield Padding(Text("\n".join(_advice(diagnosis))), (0, 0, 0, 2))
        for finding in ordered[:_MOST_FINDINGS]:
            yield from _finding(finding, [d for d in self.diagnoses if finding in d.findings][:1])
        if len(ordered) > _MOST_FINDINGS:
            yield Text(f"... and {len(ordered) - _MOST_FINDINGS} more findings", style="dim")


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
        lines = [finding.message]
        for diagnosis in diagnoses:
            lines += _advice(diagnosis)
        yield Padding(Text("\n".join(lines)), (0, 0, 0, 2))


def _advice(diagnosis: Diagnosis) -> list[str]:
    tries = [f"Try first: {'; then '.join(diagnosis.remedies[:2])}."] if diagnosis.remedies else []
    return [f"Cause: {diagnosis.cause}. {diagnosis.evidence}", *tries]


def summary(
    snapshot: Snapshot,
    findings: Sequence[Finding] = (),
    diagnoses: Sequence[Diagnosis] = (),
    title: str = "",
    notes: Sequence[str] = (),
) -> Summary:
    """The layers of a step, the findings, and for each open one its cause and the first thing to try.

    Example:
        >>> summary(Snapshot(7, ("a", "b"), grad_norm=[1e-3, 1.0])).title
        'gradwatch: gradients at step 7'
    """
    return Summary(snapshot, findings, diagnoses, title or f"gradwatch: gradients at step {snapshot.step}", notes)


@dataclass(frozen=True)
class _SideBySide:
    left: RenderableType
    right: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if options.max_width < _SIDE_BY_SIDE_WIDTH:
            yield Group(self.left, Text(), self.right)
            return
        grid = Table.grid(padding=(0, 4, 0, 0), pad_edge=False)
        for _ in range(2):
            grid.add_column(width=(options.max_width - 4) // 2)
        grid.add_row(self.left, self.right)
        yield grid


def side_by_side(left: RenderableType, right: RenderableType) -> RenderableType:
    """Two summaries beside each other from 120 columns on, one below the other on a narrower terminal.

    Example:
        >>> both = side_by_side(summary(Snapshot(0, ("a",))), summary(Snapshot(0, ("a",))))
    """
    return _SideBySide(left, right)


def print_summary(
    snapshot: Snapshot,
    findings: Sequence[Finding] = (),
    diagnoses: Sequence[Diagnosis] = (),
    title: str = "",
    console: Console | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print :func:`summary`, and below it the notes: what could not be watched or written.

    Into a file or a log it goes without colours and 120 characters wide, unless COLUMNS is set.

    Example:
        >>> snapshot = Snapshot(7, ("a", "b"), grad_norm=[1e-3, 1.0], total_norm=1.0)
        >>> print_summary(snapshot, title="two layers", console=Console(width=40))  # doctest: +NORMALIZE_WHITESPACE
        two layers
               grad
        layer  norm
        ───────────
        a     0.001
        b      1.00
        <BLANKLINE>
        step 7, total gradient norm 1.00
        <BLANKLINE>
        No finding.
    """
    (console or wide_console()).print(summary(snapshot, findings, diagnoses, title, notes))


def wide_console() -> Console:
    """The terminal, or where the output is none, a page that is wide enough for the table."""
    console = Console()
    is_log = not console.is_terminal and not console.is_jupyter and "COLUMNS" not in os.environ
    return Console(width=_LOG_WIDTH) if is_log else console
