"""Measure what is said of programs that do harm, and of those that only look like it.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m harm.measure --csv_file harm.csv

Healthy programs have heavy tails, units at their bounds, gates that are shut, or tiny weights before a norm, and learn;
harmful ones do not, or lose what they had learned. Which is which is measured: the held-out loss falls by a quarter,
and does not double again. A program whose outcome is not the one that it stands for is listed, and does not count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from detection.intervals import wilson
from detection.tables import Report, Row
from harm.harmful import HARMFUL
from harm.healthy import HEALTHY
from harm.program import Program, run
from jsonargparse import auto_cli


def rows_of(programs: Mapping[str, Program], seeds: int, *, healthy: bool, only: list[str] | None) -> list[Row]:
    """A row for each program, and the sum over those whose outcome is as meant."""
    rows: list[Row] = []
    hits = runs = 0
    for name, program in programs.items():
        if only and name not in only:
            continue
        said: list[str] = []
        meant = found = 0
        for seed in range(seeds):
            outcome, watcher = run(program, seed)
            causes = [cause.cause for cause in watcher.diagnosis() if not cause.findings]
            kinds = [f"{finding.kind} at {finding.step}" for finding in watcher.findings]
            if outcome.is_healthy is not healthy:
                continue
            meant += 1
            found += bool(kinds or causes)
            said += [*kinds, *causes]
        hits, runs = hits + found, runs + meant
        if not healthy or found or meant < seeds:
            what = ", ".join(list(dict.fromkeys(said))[:4])
            rows.append({"program": name, "as meant": f"{meant} of {seeds}", "found": found, "said": what})
    low, high = wilson(hits, runs)
    share = f"{hits} ({hits / max(runs, 1):.1%}, {low:.1%}-{high:.1%})"
    return [*rows, {"program": f"all {len(programs)}", "as meant": runs, "found": share, "said": ""}]


def main(seeds: int = 3, programs: list[str] | None = None, csv_file: Path | None = None) -> None:
    """Measure and print the tables.

    Args:
        seeds: starts of each program.
        programs: some of them, by name; all by default.
        csv_file: also write the rows here.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = Report(csv_file)
    report.table("healthy programs, accused", rows_of(HEALTHY, seeds, healthy=True, only=programs))
    report.table("harmful programs", rows_of(HARMFUL, seeds, healthy=False, only=programs))
    report.save()


if __name__ == "__main__":
    auto_cli(main)
