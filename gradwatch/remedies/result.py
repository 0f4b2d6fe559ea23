"""What a trial came to: a row for each training, ranked, as a table and as a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gradwatch.records import Finding
from gradwatch.remedies.remedy import Remedy
from gradwatch.reporting.words import number

UNTREATED = "untreated"


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        remedy: what was applied; None for the untreated one.
        result: the metric at the end; NaN where there is none.
        loss: mean training loss over the last tenth of the steps, in the untreated one's unit.
        findings: those still open at the end.
        first, last: norms of the gradients of the first and the last layer with weights, at the last measured step.
        seconds: that it took.
        error: why it has no result; empty where it has one.
        code: the patch.
    """

    remedy: Remedy | None
    result: float = math.nan
    loss: float = math.nan
    findings: tuple[Finding, ...] = ()
    first: float = math.nan
    last: float = math.nan
    seconds: float = 0.0
    error: str = ""
    code: str = ""

    @property
    def name(self) -> str:
        """The remedy with its settings, as short as its repr can be."""
        return short_name(self.remedy) if self.remedy else UNTREATED

    @property
    def flow(self) -> float:
        """Gradient of the first layer over that of the last."""
        return self.first / self.last if self.last > 0 else math.nan


def short_name(remedy: Remedy) -> str:
    """A remedy with its first setting, and the others that differ from their defaults.

    Example:
        >>> from gradwatch.remedies import Clip, Combination, InitializeAgain
        >>> short_name(Combination((Clip(), InitializeAgain("he", seed=0))))
        "Clip(max_norm=1.0) + InitializeAgain(scheme='he')"
    """
    parts = getattr(remedy, "remedies", None)
    if parts:
        return " + ".join(map(short_name, parts))
    fields: dict[str, Any] = getattr(remedy, "__dataclass_fields__", {})
    shown = [f"{name}={getattr(remedy, name)!r}" for place, (name, field) in enumerate(fields.items())
             if name not in ("kinds", "fits") and (place == 0 or getattr(remedy, name, None) != field.default)]  # fmt: skip
    return f"{type(remedy).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class Trial:
    """All trainings of a trial, the best first; what crashed stands at the end.

    Attributes:
        rows: ranked.
        metric: what they are ranked by, such as ``val_accuracy``.
        higher_is_better: of the metric.
        steps, seed: of each training.
        diagnoses: of the untreated training.
        interrupted: whether it was broken off; the rows are those that were done.
    """

    rows: tuple[Row, ...]
    metric: str
    higher_is_better: bool
    steps: int
    seed: int
    diagnoses: tuple[Any, ...] = ()
    interrupted: bool = False

    @property
    def untreated(self) -> Row:
        """The training without a remedy."""
        return next(row for row in self.rows if row.remedy is None)

    @property
    def best(self) -> Row | None:
        """The best row that beats the untreated one, if any does."""
        first = self.rows[0] if self.rows else None
        return first if first is not None and first.remedy is not None and not first.error else None

    @property
    def patch(self) -> str:
        """The code of the best remedy; empty where none beats the untreated training."""
        return self.best.code if self.best else ""

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        table = Table(title=self._title(), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for head in ("remedy", self.metric, "train loss", "first/last grad", "open findings", "seconds"):
            table.add_column(head, justify="left" if head in ("remedy", "open findings") else "right")
        for place, row in enumerate(self.rows):
            style = "dim" if row.error else "bold green" if place == 0 and self.best else None
            table.add_row(*map(Text, _cells(row)), style=style)
        return table

    def _title(self) -> str:
        broken = ", broken off" if self.interrupted else ""
        better = "higher" if self.higher_is_better else "lower"
        return f"gradwatch: {self.steps} steps each, seed {self.seed}; {better} {self.metric} is better{broken}"

    def report(self, path: str | Path) -> None:
        """Write table, diagnosis and patch as Markdown.

        Args:
            path: of the file; its folder is made where it is missing.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The report as text."""
        parts = ["# What cures this training", _sentence(self), "## Diagnosis", *_diagnosis_lines(self.diagnoses)]
        parts += ["## Remedies", f"{self._title()}.", _markdown_table(self)]
        if self.best:
            parts += ["## Patch", f"{self.best.name}:", f"```python\n{self.patch}\n```"]
        return "\n\n".join(parts) + "\n"


def rank(rows: Sequence[Row], higher_is_better: bool) -> tuple[Row, ...]:
    """Finite results first, the best of them first; of equal ones the lower loss, then the earlier.

    Example:
        >>> rows = Row(None, 0.1), Row(None, error="it broke"), Row(None, 0.9)
        >>> [row.result for row in rank(rows, higher_is_better=True)]
        [0.9, 0.1, nan]
    """
    sign = -1 if higher_is_better else 1

    def key(row: Row) -> tuple[bool, bool, float, float]:
        finite = math.isfinite(row.result)
        loss = row.loss if math.isfinite(row.loss) else math.inf
        return bool(row.error), not finite, sign * row.result if finite else 0.0, loss

    return tuple(sorted(rows, key=key))


def _cells(row: Row) -> list[str]:
    if row.error:
        return [row.name, "", "", "", row.error, f"{row.seconds:.1f}"]
    kinds = sorted({finding.kind for finding in row.findings})
    flow = f"{row.flow:.1e}" if math.isfinite(row.flow) else ""
    return [row.name, number(row.result), number(row.loss), flow, ", ".join(kinds) or "none", f"{row.seconds:.1f}"]


def _sentence(trial: Trial) -> str:
    before = number(trial.untreated.result) or "not a number"
    if trial.best is None:
        return f"No remedy beats the untreated training ({trial.metric} {before})."
    return f"{trial.best.name} brings {trial.metric} from {before} to {number(trial.best.result)}."


def _diagnosis_lines(diagnoses: Sequence[Any]) -> list[str]:
    if not diagnoses:
        return ["Nothing was found in the untreated training."]
    return [f"- **{diagnosis.cause}**: {diagnosis.evidence}" for diagnosis in diagnoses]


def _markdown_table(trial: Trial) -> str:
    heads = ["remedy", trial.metric, "train loss", "gradient, first / last layer", "open findings", "seconds"]
    lines = [heads, ["---"] * len(heads), *([f"`{cells[0]}`", *cells[1:]] for cells in map(_cells, trial.rows))]
    return "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
