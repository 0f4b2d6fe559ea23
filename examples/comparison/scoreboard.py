"""The results as tables: all runs in CSV and Markdown, and the spread over the seeds."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.examples.comparison.records import by_remedy, has_seeds, ranked, record
from gradwatch.examples.comparison.results import Result

NO_VALUE = "-"
MARKDOWN, CSV = "scoreboard.md", "scoreboard.csv"


@dataclass(frozen=True)
class Table:
    """Text in rows under a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(results: Sequence[Result], folder: Path) -> None:
    """Write ``scoreboard.md`` and ``scoreboard.csv``."""
    tables = [*([over_seeds(results)] if has_seeds(results) else []), of_runs(results)]
    shared = results[0].settings
    about = ", ".join(f"{name} {shared[name]}" for name in ("dataset", "max_epochs", "batch_size") if name in shared)
    about += ", only a few batches of each epoch (fast)" if shared.get("fast") else ""
    text = "\n".join(["# Scoreboard\n", f"{about}.\n", *(table.markdown() for table in tables), NOTES])
    (folder / MARKDOWN).write_text(text)
    with (folder / CSV).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(record(results[0])))
        writer.writeheader()
        writer.writerows(record(result) for result in ranked(results))


NOTES = """Test accuracy after the last epoch; train loss: mean over the last epoch's batches. Gradient norms: L2 norm
of the gradient of the first Linear's parameters (and this over that of the last Linear's), at the first and the last
measured step; `-` where the layer was frozen. Steps to 70 %: optimizer steps until the first validation with that
accuracy; there is one after each epoch. Findings: the kind, the step at which the first began and at which the last
ended. Over several seeds the ratio is the median.
"""


def of_runs(results: Sequence[Result]) -> Table:
    """Return a table with a row a run, the best first, failed ones last."""
    header = ["remedy", "seed", "test accuracy", "published", "train loss", "first layer's gradient, start", "end"]
    header += ["first / last, start", "end", "steps to 70 %", "findings"]
    return Table("Runs", header, [_row(record(result)) for result in ranked(results)])


def _row(values: dict[str, Any]) -> list[str]:
    accuracies = [number(values[name], ".4f") for name in ("test_accuracy", "published_accuracy")]
    norms = [f"{part}_{when}" for part in ("first_layer_grad_norm", "first_to_last") for when in ("start", "end")]
    last = f"failed: {values['error'].replace('|', '/')}" if values["error"] else values["findings"] or "none"
    row = [values["remedy"], str(values["seed"]), *accuracies, number(values["train_loss"], ".3f")]
    return [*row, *(number(values[name], ".1e") for name in norms), number(values["steps_to_70"], "d"), last]


def over_seeds(results: Sequence[Result]) -> Table:
    """Return a table with a row a remedy: mean and standard deviation over its seeds."""
    header = ["remedy", "runs", "test accuracy", "lowest to highest", "train loss", "first / last, start", "at 70 %"]
    rows = [_seeds_row(name, runs) for name, runs in by_remedy(results).items()]
    return Table("Mean ± standard deviation over the seeds", header, rows)


def _seeds_row(name: str, runs: Sequence[Result]) -> list[str]:
    done = [run for run in runs if not run.error]
    if not done:
        return [name, f"0 of {len(runs)}", *[NO_VALUE] * 5]
    accuracies = [run.test_accuracy for run in done]
    span = f"{min(accuracies):.4f} to {max(accuracies):.4f}"
    ratio = number(float(np.median([run.ratio_start for run in done])), ".1e")
    good = sum(run.steps_to_good is not None for run in done)
    losses = spread([run.train_loss for run in done], ".3f")
    count = str(len(done)) if len(done) == len(runs) else f"{len(done)} of {len(runs)}"
    return [name, count, spread(accuracies, ".4f"), span, losses, ratio, f"{good} of {len(done)}"]


def spread(values: Sequence[float], form: str) -> str:
    """Return mean and sample standard deviation.

    Example:
        >>> spread([0.25, 0.75], ".2f"), spread([0.5], ".2f"), spread([], ".2f")
        ('0.50 ± 0.35', '0.50', '-')
    """
    if not values:
        return NO_VALUE
    with np.errstate(invalid="ignore"):  # of a run that diverged
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    plus_minus = "" if math.isnan(deviation) else f" ± {number(deviation, form)}"
    return number(float(np.mean(values)), form) + plus_minus


def number(value: float | None, form: str) -> str:
    """Return the value in that format, or a dash for None."""
    return NO_VALUE if value is None or math.isnan(value) else format(value, form)
