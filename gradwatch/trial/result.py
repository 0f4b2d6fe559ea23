"""The result of a trial: its rows, the metric that ranks them, and how they are shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradwatch.layer_kinds import is_normalization
from gradwatch.records import Finding, Snapshot
from gradwatch.remedies.remedy import Advice, Remedy
from gradwatch.reporting.text import number, verdict
from gradwatch.shown import Shown

TRAIN_LOSS = "train loss"
_ACCURACY = re.compile(r"^val\w*?[_/. -]?(acc|accuracy)\b|^val.*acc", re.IGNORECASE)
_LOSS = re.compile(r"^val.*loss", re.IGNORECASE)
_HIGHER = re.compile(r"acc|auroc|auc|f1|precision|recall|r2|iou|dice|psnr|ssim|bleu|map\b", re.IGNORECASE)


def choose_metric(names: Sequence[str]) -> str:
    """Choose a validation accuracy, else a validation loss, else the train loss.

    A remedy may change the loss, and a loss then its unit; an accuracy keeps it.

    Example:
        >>> choose_metric(["val_loss", "val_acc"]), choose_metric(["val/loss"]), choose_metric(["test_loss"])
        ('val_acc', 'val/loss', 'train loss')
    """
    found = [name for pattern in (_ACCURACY, _LOSS) for name in names if pattern.search(name)]
    return found[0] if found else TRAIN_LOSS


def is_better_higher(metric: str) -> bool:
    """Return True if, by its name, a higher value is better.

    Example:
        >>> is_better_higher("val_f1"), is_better_higher("val_loss"), is_better_higher("train loss")
        (True, False, False)
    """
    return "loss" not in metric and bool(_HIGHER.search(metric))


def first_and_last(history: Sequence[Snapshot]) -> tuple[float, float]:
    """Return the gradient norms of the first and the last layer with weights, at the last measured step.

    Normalization layers do not count.

    Example:
        >>> first_and_last([Snapshot(0, ("a", "b"), grad_norm=[0.1, 2.0], weight_norm=[1.0, 1.0])])
        (0.1, 2.0)
    """
    for snapshot in reversed(history):
        is_layer = np.array([not is_normalization(kind) for kind in snapshot.kinds], bool) & (snapshot.weight_norm >= 0)
        norms = snapshot.grad_norm[is_layer]
        if len(norms):
            return float(norms[0]), float(norms[-1])
    return math.nan, math.nan


UNTREATED = "untreated"
# Of what the best row wins over the untreated one. On data that no choice used, rows that differ by less do as well.
_ALIKE = 0.02


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        remedy: None for the untreated training.
        result: the metric at the end; NaN where there is none.
        loss: mean training loss over the last tenth of the steps, in the unit of the untreated training.
        findings: those still open at the end.
        first, last: norms of the gradients of the first and the last layer with weights, at the last measured step.
        seconds: duration of the training.
        error: the reason for having no result; empty where there is one.
        code: the patch.
        place: how many trainings came before it in the trial.
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
    place: int = 0

    @property
    def name(self) -> str:
        """The remedy with its settings, as short as its repr can be."""
        return short_name(self.remedy) if self.remedy else UNTREATED

    @property
    def flow(self) -> float:
        """Gradient of the first layer over that of the last."""
        return self.first / self.last if self.last > 0 else math.nan


def short_name(remedy: Remedy) -> str:
    """Name a remedy with its first setting, and those that differ from their defaults.

    Example:
        >>> from gradwatch.remedies import Clip, Combination, InitializeAgain
        >>> short_name(Combination((Clip(), InitializeAgain("he", seed=0))))
        "Clip(max_norm=1.0) + InitializeAgain(scheme='he')"
    """
    parts = getattr(remedy, "remedies", None)
    if parts:
        return " + ".join(map(short_name, parts))
    if not is_dataclass(remedy):
        return repr(remedy)
    settings = [(one.name, getattr(remedy, one.name), one.default) for one in fields(remedy) if one.name != "kinds"]
    shown = [f"{name}={value!r}" for i, (name, value, default) in enumerate(settings) if i == 0 or value != default]
    return f"{type(remedy).__name__}({', '.join(shown)})"


def rank(rows: Sequence[Row], higher_is_better: bool) -> tuple[Row, ...]:
    """Sort rows: finite results first, the best of them first; equal ones by their loss, then as they were.

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


def _table(metric: str, rows: Sequence[Row], flow_head: str) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the cells of a table; one column is enough where the train loss is the metric."""
    heads = ["remedy", metric, "train loss", flow_head, "open findings", "seconds"]
    kept = [place for place in range(len(heads)) if place != 2 or metric != TRAIN_LOSS]
    return [heads[place] for place in kept], [[cells[place] for place in kept] for cells in map(_cells, rows)]


def _cells(row: Row) -> list[str]:
    seconds = f"{row.seconds:.1f}"
    if row.error:
        return [row.name, "", "", "", row.error, seconds]
    kinds = ", ".join(sorted({finding.kind for finding in row.findings})) or "none"
    flow = f"{row.flow:.1e}" if math.isfinite(row.flow) else ""
    return [row.name, _measured(row.result), _measured(row.loss), flow, kinds, seconds]


def _measured(value: float) -> str:
    """Return a result that was measured: NaN is then one too."""
    return number(value) or "NaN"


def markdown_table(metric: str, rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown.

    Example:
        >>> print(markdown_table("val_acc", [Row(None, 0.5, 0.7)]))
        | remedy | val_acc | train loss | gradient, first / last layer | open findings | seconds |
        | --- | --- | --- | --- | --- | --- |
        | `untreated` | 0.500 | 0.700 |  | none | 0.0 |
    """
    heads, cells = _table(metric, rows, "gradient, first / last layer")
    lines = [heads, ["---"] * len(heads), *([f"`{name}`", *others] for name, *others in cells)]
    return "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


@dataclass(frozen=True)
class Trial(Shown):
    """All trainings of a trial, the best first and crashed ones last.

    Attributes:
        rows: ranked.
        metric: ranks the rows, such as ``val_accuracy``.
        higher_is_better: True for an accuracy, False for a loss.
        steps, seed: of each training.
        diagnoses: of the untreated training.
        interrupted: True after Ctrl+C; the rows are then the trainings up to there.
        advice: treats the causes too, but only the user can apply it.
        error: the exception that ended the untreated training; None where it came to its end.
    """

    rows: tuple[Row, ...]
    metric: str
    higher_is_better: bool
    steps: int
    seed: int
    diagnoses: tuple[Any, ...] = ()
    interrupted: bool = False
    advice: tuple[Advice, ...] = ()
    error: Exception | None = None

    @property
    def untreated(self) -> Row:
        """The training without a remedy."""
        return next(row for row in self.rows if row.remedy is None)

    @property
    def best(self) -> Row | None:
        """The best row that beats the untreated training; of rows that do as well, the one that was tried first.

        What was tried first treats the cause most directly. Another remedy may have won by the luck of one seed.
        """
        better = list(takewhile(lambda row: row.remedy is not None and not row.error, self.rows))
        if not better:
            return None
        won = abs(better[0].result - self.untreated.result)
        near = _ALIKE * won if math.isfinite(won) else _ALIKE * abs(better[0].result)
        alike = [row for row in better if abs(row.result - better[0].result) <= near]
        return min(alike, key=lambda row: row.place, default=better[0])

    @property
    def patch(self) -> str:
        """The code of the best remedy; empty where there is none."""
        return self.best.code if self.best else ""

    def table(self) -> Table:
        """Return the rows as a table for the terminal."""
        table = Table(title=escape(self._title()), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        heads, cells = _table(self.metric, self.rows, "first/last grad")
        for head in heads:
            justify: Literal["left", "right"] = "left" if head in ("remedy", "open findings") else "right"
            table.add_column(Text(head), justify=justify, overflow="fold")  # a name that is cut off names no remedy
        best = self.best
        for row, texts in zip(self.rows, cells, strict=True):
            style = "dim" if row.error else "bold green" if row is best else None
            table.add_row(*map(Text, texts), style=style)
        if self.best is None and len(self.rows) > 1:
            table.caption, table.caption_justify = escape(self._sentence()), "left"
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the causes, the table, the patch, and what only the user can change."""
        nothing = Text("Nothing was found in the untreated training.")
        yield verdict((), self.diagnoses) if self.diagnoses else nothing
        yield Text()
        yield self.table()
        if self.best:
            yield Text(f"\n{self._sentence()} As code:\n", style="bold green")
            yield Syntax(self.patch, "python", theme="ansi_light", background_color="default")  # read on any page
        for advice in self.advice:
            yield Text(f"For you to change ({advice.cause}): {advice.sentence}")

    def _title(self) -> str:
        broken = ", broken off" if self.interrupted else ""
        better = "higher" if self.higher_is_better else "lower"
        return f"gradwatch: {self.steps} steps each, seed {self.seed}; {better} {self.metric} is better{broken}"

    def report(self, path: str | Path) -> None:
        """Write table, diagnosis and patch as Markdown.

        Args:
            path: of the file; a missing folder is made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """Return the report as text."""
        causes = [f"- **{diagnosis.cause}**: {diagnosis.evidence}" for diagnosis in self.diagnoses]
        parts = ["# What cures this training", self._sentence(), "## Diagnosis"]
        parts += causes or ["Nothing was found in the untreated training."]
        parts += ["## Remedies", f"{self._title()}.", markdown_table(self.metric, self.rows)]
        if self.best:
            parts += ["## Patch", f"{self.best.name}:", f"```python\n{self.patch}\n```"]
        if self.advice:
            parts += ["## For you to change", *(f"- {advice.cause}: {advice.sentence}" for advice in self.advice)]
        return "\n\n".join(parts) + "\n"

    def _sentence(self) -> str:
        before = number(self.untreated.result) or "not a number"
        if self.best is None:
            return f"No remedy beats the untreated training ({self.metric} {before})."
        return f"{self.best.name} brings {self.metric} from {before} to {number(self.best.result)}."
