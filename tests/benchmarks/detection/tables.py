"""Tables on the terminal, and all their rows in one CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

Row = dict[str, object]


@dataclass
class Report:
    """Rows of several tables.

    Attributes:
        csv_file: also write them here; missing folders are made.
        rows: printed so far.
    """

    csv_file: Path | None = None
    rows: list[Row] = field(default_factory=list)

    def table(self, title: str, rows: Sequence[Row], last_apart: bool = True) -> None:
        """Print a table, with a line before its last row where that is the sum."""
        if not rows:
            return
        table = Table(*rows[0], title=title, title_justify="left")
        for i, row in enumerate(rows):
            table.add_row(*map(str, row.values()), end_section=last_apart and i == len(rows) - 2)
        Console(width=None if Console().is_terminal else 200).print(table)
        self.rows += [{"table": title, **row} for row in rows]

    def save(self) -> None:
        """Write the rows; each table has its own columns, so the file has those of all."""
        if self.csv_file is None:
            return
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        self.csv_file.parent.mkdir(parents=True, exist_ok=True)
        with self.csv_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
