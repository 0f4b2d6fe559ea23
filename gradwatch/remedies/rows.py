"""The rows of a trial: one for each training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass

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
    if not is_dataclass(remedy):
        return repr(remedy)
    settings = [(one.name, getattr(remedy, one.name), one.default) for one in fields(remedy) if one.name != "kinds"]
    told = [f"{name}={value!r}" for i, (name, value, default) in enumerate(settings) if i == 0 or value != default]
    return f"{type(remedy).__name__}({', '.join(told)})"


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


def cells_of(row: Row) -> list[str]:
    """The row as text: remedy, result, loss, flow, findings or error, seconds."""
    if row.error:
        return [row.name, "", "", "", row.error, f"{row.seconds:.1f}"]
    kinds = sorted({finding.kind for finding in row.findings})
    flow = f"{row.flow:.1e}" if math.isfinite(row.flow) else ""
    return [row.name, number(row.result), number(row.loss), flow, ", ".join(kinds) or "none", f"{row.seconds:.1f}"]


def markdown_table(metric: str, rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown.

    Example:
        >>> print(markdown_table("val_acc", [Row(None, 0.5)]))
        | remedy | val_acc | train loss | gradient, first / last layer | open findings | seconds |
        | --- | --- | --- | --- | --- | --- |
        | `untreated` | 0.500 |  |  | none | 0.0 |
    """
    heads = ["remedy", metric, "train loss", "gradient, first / last layer", "open findings", "seconds"]
    lines = [heads, ["---"] * len(heads), *([f"`{cells[0]}`", *cells[1:]] for cells in map(cells_of, rows))]
    return "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
