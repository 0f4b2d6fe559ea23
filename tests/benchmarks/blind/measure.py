"""Measure gradwatch on programs that none of its rules was tuned on.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m blind.measure --csv_file blind.csv

It takes five minutes.

Each program with a bug has a twin without it. A bug counts if it does harm: without gradwatch, the mean score on
held-out data over the seeds is NaN or at least 0.05 below the twin's. Both programs, and the healthy ones, are then
judged as in ``gradwatch.testing.assert_healthy_gradients``. A bug is found if there is a finding or a cause. It is
named if one of the causes agreed beforehand comes first, or among the first three. ``--programs '[rounding inside]'``
selects programs. Intervals are Wilson's at 95 %, as if all runs were independent, which those of one program are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from blind.judging import PROGRAMS, Result, Said, judge
from detection.intervals import wilson
from detection.tables import Report, Row
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track


def bug_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each harmful bug, and the sum with Wilson's intervals."""
    rows: list[Row] = []
    for result in results:
        one = {"bug": result.name, "score": "{:.2f}, repaired {:.2f}".format(*result.scores), "runs": len(result.said)}
        first = " / ".join(dict.fromkeys(run.causes[0] if run.causes else "-" for run in result.said))
        rows.append(
            {**one, "found": found(result.said), "first": result.named(1), "three": result.named(3), "said": first}
        )
    runs = sum(len(result.said) for result in results)
    total = {key: share(sum(int(str(row[key])) for row in rows), runs) for key in ("found", "first", "three")}
    return [*rows, {"bug": f"all {len(rows)}", "score": "", "runs": runs, **total, "said": ""}]


def found(said_of: Sequence[Said]) -> int:
    return sum(run.found for run in said_of)


def share(hits: int, runs: int) -> str:
    low, high = wilson(hits, runs)
    return f"{hits} ({hits / max(runs, 1):.1%}, {low:.1%}-{high:.1%})"


def accused(judged: Sequence[tuple[str, Sequence[Said]]]) -> list[Row]:
    """A row for each accused program, and the sum."""
    rows: list[Row] = [
        {
            "program": name,
            "accused": found(runs),
            "runs": len(runs),
            "said": " / ".join(dict.fromkeys(words(runs))),
        }
        for name, runs in judged
        if found(runs)
    ]
    runs = sum(len(said_of) for _, said_of in judged)
    total = share(sum(found(said_of) for _, said_of in judged), runs)
    return [*rows, {"program": f"all {len(judged)}", "accused": total, "runs": runs, "said": ""}]


def words(said_of: Sequence[Said]) -> list[str]:
    return [", ".join(dict.fromkeys(run.causes or run.kinds)) for run in said_of if run.found]


def main(seeds: int = 3, programs: list[str] | None = None, csv_file: Path | None = None) -> None:
    """Measure and print the tables.

    Args:
        seeds: number of starts of each program.
        programs: some of the programs, by name; all by default.
        csv_file: also write the tables' rows here.

    Raises:
        ValueError: when a program does not exist.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wrong = [name for name in programs or () if name not in PROGRAMS]
    if wrong:
        raise ValueError(f"there is no {wrong[0]!r}; expected some of: {', '.join(PROGRAMS)}")
    bar = track(programs or [*PROGRAMS], description="programs", console=Console(stderr=True))
    results = [judge(name, seeds) for name in bar]
    bugs = [result for result in results if result.program.causes]
    harmful, report = [result for result in bugs if result.harms], Report(csv_file)
    harmless: list[Row] = [
        {"bug": one.name, "score": "{:.2f}, repaired {:.2f}".format(*one.scores), "found": found(one.said)}
        for one in bugs
        if not one.harms
    ]
    tables = {
        "bugs": bug_rows(harmful),
        "harmless bugs, not counted": harmless,
        "healthy programs, accused": accused([(one.name, one.said) for one in results if not one.program.causes]),
        "repaired twins, accused": accused([(one.name, one.said_of_twin) for one in bugs]),
    }
    for title, rows in tables.items():
        if rows:
            report.table(title, rows, last_apart=title != "harmless bugs, not counted")
    report.save()


if __name__ == "__main__":
    auto_cli(main)
