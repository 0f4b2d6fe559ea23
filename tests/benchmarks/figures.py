"""Print measured rows as a table, and write them to a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, object]


def publish(rows: Sequence[Row], csv_file: Path | None = None, *, group: str | None = None) -> None:
    """Print the rows as a table, and write them to the file.

    Args:
        rows: column -> cell; all with the same columns.
        csv_file: also write them here; missing folders are made.
        group: the column at whose changes a line is drawn.
    """
    table = Table(*rows[0], title=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        ends = group is not None and (after is None or after[group] != row[group])
        table.add_row(*map(str, row.values()), end_section=ends)
    Console(width=None if Console().is_terminal else 160).print(table)
    if csv_file is not None:
        csv_file.parent.mkdir(parents=True, exist_ok=True)
        with csv_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of such a file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
