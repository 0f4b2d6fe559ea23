"""Measure if gradwatch finds steps that go wrong, in time and by name, and leaves healthy programs alone.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m updates.measure --csv_file updates.csv

It takes about a quarter of an hour.

Each sick program has a twin without the bug. A bug counts if it does harm: without gradwatch, the mean score on
held-out data over the seeds is NaN or at least 0.05 below the twin's. Programs are watched with the default settings,
in a Lightning fit or in a loop with ``gradwatch.watch``. A bug is found if an accepted finding opens within the first
20 steps, all of which are measured. For a rate that is too low or an eps that is too large, an accepted cause after
these steps is enough. The parameter is named if it is among the finding's layers, or if it or its group is in the
evidence of an accepted cause. The cause is judged after 20 steps too, and has to come first. Twins and healthy programs
are accused if there is any finding, cause or warning, at any time. ``--programs '[zero_grad is missing]'`` selects
programs by the start of their names. Intervals are Wilson's at 95 %, as if all runs were independent, which those of
one program are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from detection.intervals import wilson
from detection.tables import Report, Row
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from updates.judging import Result, judge
from updates.programs import PROGRAMS


def sick_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each harmful bug, and the sum with Wilson's intervals."""
    rows: list[Row] = []
    for result in results:
        runs = result.said
        first = dict.fromkeys(run.causes[0] if run.causes else "-" for run in runs)
        kinds = dict.fromkeys(kind for run in runs for kind in run.kinds)
        rows.append(
            {
                "program": result.name,
                "score": "{:.2f}, repaired {:.2f}".format(*result.scores),
                "runs": len(runs),
                "found": sum(run.found for run in runs),
                "by step": max((run.step for run in runs), default=0) or "-",
                "named": sum(run.named for run in runs),
                "cause first": sum(run.first for run in runs),
                "all three": sum(run.is_right for run in runs),
                "findings": ", ".join(kinds) or "-",
                "first causes": " / ".join(first),
            }
        )
    runs_in_all = sum(len(result.said) for result in results)
    columns = ("found", "named", "cause first", "all three")
    total = {key: share(sum(int(str(row[key])) for row in rows), runs_in_all) for key in columns}
    blank = dict.fromkeys(("score", "by step", "findings", "first causes"), "")
    last: Row = {**blank, "program": f"all {len(rows)}", "runs": runs_in_all, **total}
    return [*rows, {column: last[column] for column in rows[0]}] if rows else []


def share(hits: int, runs: int) -> str:
    low, high = wilson(hits, runs)
    return f"{hits} ({hits / max(runs, 1):.1%}, {low:.1%}-{high:.1%})"


def accused_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each program without a bug that was accused, and the sum."""
    rows: list[Row] = []
    for result in results:
        runs = [run for run in result.said_of_twin if run]
        if runs:
            words = dict.fromkeys(", ".join((*run.kinds, *run.causes, *run.broken, *run.warned)) for run in runs)
            rows.append(
                {
                    "program": result.name,
                    "accused": len(runs),
                    "runs": len(result.said_of_twin),
                    "said": " / ".join(words),
                    "first message": next(iter(runs[0].messages), ""),
                }
            )
    runs_in_all = sum(len(result.said_of_twin) for result in results)
    total = share(sum(int(str(row["accused"])) for row in rows), runs_in_all)
    last: Row = {"program": f"all {len(results)}", "accused": total, "runs": runs_in_all, "said": ""}
    return [*rows, {**last, "first message": ""}]


def failed_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each sick program in which a part of the watching failed."""
    return [
        {
            "program": result.name,
            "failed": " / ".join(dict.fromkeys(part for run in result.said for part in run.broken)),
        }
        for result in results
        if any(run.broken for run in result.said)
    ]


def chosen(starts: Sequence[str] | None) -> list[str]:
    """Return the programs whose names start so; all by default."""
    wrong = [start for start in starts or () if not any(name.startswith(start) for name in PROGRAMS)]
    if wrong:
        raise ValueError(f"no program's name starts with {wrong[0]!r}; expected some of: {'; '.join(PROGRAMS)}")
    return [name for name in PROGRAMS if starts is None or name.startswith(tuple(starts))]


def main(seeds: int = 5, programs: list[str] | None = None, csv_file: Path | None = None) -> None:
    """Measure and print the tables.

    Args:
        seeds: number of starts of each program.
        programs: starts of the names of programs; all by default.
        csv_file: also write the tables' rows here.

    Raises:
        ValueError: when a program does not exist.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bar = track(chosen(programs), description="programs", console=Console(stderr=True))
    results = [judge(name, seeds) for name in bar]
    sick, report = [result for result in results if result.program.causes], Report(csv_file)
    harmless: list[Row] = [
        {
            "program": one.name,
            "score": "{:.2f}, repaired {:.2f}".format(*one.scores),
            "found": sum(s.found for s in one.said),
        }
        for one in sick
        if not one.harms
    ]
    report.table("sick programs, within 20 measured steps", sick_rows([result for result in sick if result.harms]))
    report.table("harmless bugs, not counted", harmless, last_apart=False)
    report.table("watching that failed", failed_rows(sick), last_apart=False)
    for title, some in (("repaired twins, accused", sick), ("healthy programs, accused", [*_healthy(results)])):
        if some:
            report.table(title, accused_rows(some))
    report.save()


def _healthy(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if not result.program.causes]


if __name__ == "__main__":
    auto_cli(main)
