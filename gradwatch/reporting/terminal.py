"""The terminal's summary of a step: a table of the layers, the findings, and what to do about them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradwatch.paths import unused_in_words
from gradwatch.progress import Judgement, judge_run
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.layer_table import LayerTable
from gradwatch.reporting.text import clip_text, evidence_beyond, listed, number, since

_LOG_WIDTH = 120  # where the output is no terminal: rich would take 80
_SIDE_BY_SIDE_WIDTH = 200  # each half is then wide enough for the columns that tell two runs apart
_MOST_FINDINGS = 8


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
        title = self.title or f"gradwatch: gradients at step {self.snapshot.step}"
        lines = [_totals(self.snapshot), self._course(), clip_text(self.history), unused_in_words(self.history)]
        yield LayerTable(self.snapshot, self.findings, title, [line for line in lines if line])
        yield Text()
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
        told: list[Diagnosis] = []
        for finding in ordered[:_MOST_FINDINGS]:
            cause = next((d for d in self.diagnoses if finding in d.findings), None)
            yield from _finding(finding, cause, is_told=any(cause is other for other in told))
            if cause is not None and finding.is_open:
                told.append(cause)
        if len(ordered) > _MOST_FINDINGS:
            yield Text(f"... and {len(ordered) - _MOST_FINDINGS} more findings", style="dim")


@dataclass(frozen=True)
class SideBySide:
    """Two summaries side by side from 200 columns on, one below the other on a narrower terminal."""

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
        "total gradient norm": "NaN or Inf" if math.isinf(snapshot.total_norm) else number(snapshot.total_norm),
        "after clipping": number(snapshot.total_norm_after) if snapshot.clip_coefficient < 1 else "",
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _finding(finding: Finding, diagnosis: Diagnosis | None, *, is_told: bool) -> Iterator[RenderableType]:
    until = "open" if finding.closed_step is None else f"gone at step {finding.closed_step}"
    style = "dim" if not finding.is_open else "bold red" if finding.severity == "error" else "bold yellow"
    yield Text(f"{finding.kind} since step {finding.step}, {until}: {listed(finding.layers)}", style=style)
    if finding.is_open:
        advice = _advice(diagnosis, finding.message) if diagnosis else []
        if diagnosis and is_told:
            advice = [f"Cause: {diagnosis.cause}, as above."]
        lines = [*filter(None, (finding.message, since(finding))), *advice]
        yield Padding(Text("\n".join(lines)), (0, 0, 0, 2))


def _advice(diagnosis: Diagnosis, said: str = "") -> list[str]:
    tries = [f"Try first: {'; then '.join(diagnosis.remedies[:2])}."] if diagnosis.remedies else []
    return [f"Cause: {diagnosis.cause}. {evidence_beyond(diagnosis, said)}".rstrip(), *tries]
