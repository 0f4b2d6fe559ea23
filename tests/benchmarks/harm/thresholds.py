"""Make the table of thresholds of harm: what is accused and what is found with other values.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m harm.thresholds --csv_file thresholds.csv

Each program of ``harm.measure`` is trained once and measured at every step. The detectors then look at what was
measured, once for each value of a threshold, with all others as they are. Losses and gradients of the training do not
depend on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from detection.tables import Report, Row
from harm.harmful import HARMFUL
from harm.healthy import HEALTHY
from harm.program import Program, run
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track

import gradwatch
from gradwatch.pipeline import harm
from gradwatch.pipeline.ledger import Ledger

GRID = {
    "DOES_WELL": (0.1, 0.25, 0.5, 0.75, 0.9),
    "_WELL_LATER": (0.05, 0.1, 0.25, 0.5, 0.75),
    "_ROSE": (1.5, 2.0, 3.0, 5.0, 10.0),
    "_EARLY": (5, 10, 20, 40, 80),
    "_MILD": (1.0, 3.0, 10.0, 30.0, 100.0),
    "_GATES_OPEN": (20, 50, 150, 300),
    "_RESTS": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
}

Runs = Sequence[Sequence[gradwatch.Snapshot]]


def recorded(programs: dict[str, Program], seeds: int, *, healthy: bool) -> Runs:
    """Return what was measured of each run that does what its program stands for."""
    runs = []
    for program in track(programs.values(), description="programs", console=Console(stderr=True)):
        for seed in range(seeds):
            outcome, watcher = run(program, seed, every_n_steps=1)
            if outcome.is_healthy is healthy:
                runs.append(watcher.history)
    return runs


def told(history: Sequence[gradwatch.Snapshot]) -> bool:
    """Return True if the detectors find something in a run."""
    ledger = Ledger(gradwatch.default_detectors())
    for snapshot in history:
        ledger.update(snapshot)
    return bool(ledger.findings or ledger.check_losses(history[-1]))


def rows_of(name: str, healthy: Runs, harmful: Runs) -> list[Row]:
    rows: list[Row] = []
    for value in GRID[name]:
        with patch.object(harm, name, value):
            is_used = " (used)" if value == USED[name] else ""
            rows.append(
                {
                    "threshold": name.strip("_").lower(),
                    "value": f"{value:g}{is_used}",
                    f"healthy accused, of {len(healthy)}": sum(map(told, healthy)),
                    f"harmful found, of {len(harmful)}": sum(map(told, harmful)),
                }
            )
    return rows


USED = {name: getattr(harm, name) for name in GRID}


def main(seeds: int = 2, csv_file: Path | None = None) -> None:
    """Measure and print the table.

    Args:
        seeds: starts of each program.
        csv_file: also write the rows here.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    healthy, harmful = (recorded(those, seeds, healthy=are) for those, are in ((HEALTHY, True), (HARMFUL, False)))
    report = Report(csv_file)
    for name in GRID:
        report.table(name.strip("_").lower(), rows_of(name, healthy, harmful), last_apart=False)
    report.save()


if __name__ == "__main__":
    auto_cli(main)
