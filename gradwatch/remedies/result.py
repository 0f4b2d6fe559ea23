"""What a trial came to, as a table and as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gradwatch.remedies.remedy import Advice
from gradwatch.remedies.rows import Row, cells_of, markdown_table
from gradwatch.reporting.words import number


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
        advice: what would treat the causes too, but is for the user to change.
    """

    rows: tuple[Row, ...]
    metric: str
    higher_is_better: bool
    steps: int
    seed: int
    diagnoses: tuple[Any, ...] = ()
    interrupted: bool = False
    advice: tuple[Advice, ...] = ()

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
            table.add_row(*map(Text, cells_of(row)), style=style)
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
        parts = ["# What cures this training", self._sentence(), "## Diagnosis", *_diagnosis_lines(self.diagnoses)]
        parts += ["## Remedies", f"{self._title()}.", markdown_table(self.metric, self.rows)]
        if self.best:
            parts += ["## Patch", f"{self.best.name}:", f"```python\n{self.patch}\n```"]
        if self.advice:
            parts += ["## For you to change", *(f"- {advice.cause}: {advice.told}" for advice in self.advice)]
        return "\n\n".join(parts) + "\n"

    def _sentence(self) -> str:
        before = number(self.untreated.result) or "not a number"
        if self.best is None:
            return f"No remedy beats the untreated training ({self.metric} {before})."
        return f"{self.best.name} brings {self.metric} from {before} to {number(self.best.result)}."


def _diagnosis_lines(diagnoses: Sequence[Any]) -> list[str]:
    if not diagnoses:
        return ["Nothing was found in the untreated training."]
    return [f"- **{diagnosis.cause}**: {diagnosis.evidence}" for diagnosis in diagnoses]
