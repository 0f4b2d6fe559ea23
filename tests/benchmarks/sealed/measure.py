"""Measure gradwatch on the sealed set, which nothing of it was tuned on.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m sealed.measure --csv_file sealed.csv

Each faulty program, its repaired twin and each healthy program is fitted on the CPU with ``GradientMonitor()``, each
program in a process of its own. A fault is found if there is a finding, a cause or a warning. It is named if one of the
causes of ``sealed/expected.py``, which were agreed beforehand, comes first, or among the first three; faults that no
cause of the list fits are not asked for one. Where numbers break at one operation, its place is named if one message
names both the operation and the function, or a line of it. A run that only crashed has found nothing. ``--programs
'[gan, lion]'`` selects programs. Intervals are Wilson's at 95 %, as if all runs were independent, which those of one
program are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from blind.measure import share
from detection.tables import Report, Row
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from sealed.check import THEMES, everything
from sealed.expected import EXPECTED
from sealed.judging import Result, Run, judge

Many = Sequence[Result]


def causes_of(result: Result) -> tuple[str, ...]:
    """Return the causes that are right for a faulty program; none where no cause fits."""
    return EXPECTED[result.program.name]


def fault_row(result: Result) -> Row:
    """Return what was said of a faulty program; a dash for what it isn't asked for."""
    runs, right, place = result.runs, causes_of(result), result.program.place
    return {
        "fault": result.program.name,
        "domain": result.program.domain,
        "score": scores(runs),
        "repaired": scores(result.twins),
        "runs": len(runs),
        "found": sum(one.found for one in runs),
        "first": sum(one.names(right, 1) for one in runs) if right else "-",
        "three": sum(one.names(right, 3) for one in runs) if right else "-",
        "place": sum(one.place for one in runs) if place else "-",
        "expected": " / ".join(right),
        "said": " / ".join(dict.fromkeys(one.causes[0] if one.causes else "-" for one in runs)),
    }


def scores(runs: Sequence[Run]) -> str:
    return " ".join(f"{one.score:.3g}" for one in runs)


def sum_of_faults(results: Many) -> list[Row]:
    """Return the shares of all faults, of those that a cause fits, of those that none fits, and of the places."""
    fits, none = [one for one in results if causes_of(one)], [one for one in results if not causes_of(one)]
    places = [one for one in results if one.program.place]
    rows = [
        figure("found: a finding, a cause or a warning", results, lambda _, run: run.found),
        figure("found, where a cause fits", fits, lambda _, run: run.found),
        figure("found, where none fits", none, lambda _, run: run.found),
        figure("right cause first", fits, lambda result, run: run.names(causes_of(result), 1)),
        figure("right cause among the first three", fits, lambda result, run: run.names(causes_of(result), 3)),
        figure("operation named", places, lambda _, run: run.operation),
        figure("function named", places, lambda _, run: run.function),
        figure("operation and function named", places, lambda _, run: run.place),
    ]
    return [row for row in rows if row["programs"]]


def figure(title: str, results: Many, hit: Callable[[Result, Run], bool]) -> Row:
    """Return in how many programs each run hits, in how many any does, and the share of the runs."""
    hits = [[hit(result, run) for run in result.runs] for result in results]
    return {
        "figure": title,
        "programs": len(results),
        "in each run": sum(map(all, hits)),
        "in any run": sum(map(any, hits)),
        "runs": sum(map(len, hits)),
        "hits": share(sum(map(sum, hits)), sum(map(len, hits))),
    }


def accused(judged: Sequence[tuple[str, Sequence[Run]]]) -> list[Row]:
    """Return a row for each accused program, and the sum."""
    rows: list[Row] = []
    for name, runs in judged:
        said = [", ".join(dict.fromkeys(one.causes or one.kinds or ("a warning",))) for one in runs if one.found]
        if said:
            rows.append(
                {"program": name, "accused": len(said), "runs": len(runs), "said": " / ".join(dict.fromkeys(said))}
            )
    count = sum(len(runs) for _, runs in judged)
    total = share(sum(int(str(row["accused"])) for row in rows), count)
    return [*rows, {"program": f"{len(rows)} of {len(judged)}", "accused": total, "runs": count, "said": ""}]


def runs_rows(result: Result) -> list[Row]:
    """Return a row for each run of a program and of its twin, with all that was said of it."""
    kind = "faulty" if result.program.fault else "healthy"
    sides = [(kind, one) for one in result.runs] + [("twin", one) for one in result.twins]
    return [
        {
            "program": result.program.name,
            "kind": side,
            "seed": one.seed,
            "score": f"{one.score:.4g}",
            "found": one.found,
            "kinds": " / ".join(one.kinds),
            "causes": " / ".join(one.causes),
            "operation": one.operation,
            "function": one.function,
            "place": one.place,
            "texts": "\n".join(one.texts),
            "failed": " / ".join(one.failed),
            "error": one.error,
        }
        for side, one in sides
    ]


def selected(programs: Sequence[str] | None, themes: tuple[str, ...]) -> list[str]:
    """Return the names of the programs to run.

    Raises:
        ValueError: when a program does not exist.
    """
    known = [program.name for program in everything(themes)]
    wrong = [name for name in programs or () if name not in known]
    if wrong:
        raise ValueError(f"there is no {wrong[0]!r}; expected some of: {', '.join(known)}")
    return list(programs or known)


def main(
    seeds: int = 2,
    programs: list[str] | None = None,
    csv_file: Path | None = None,
    themes: tuple[str, ...] = THEMES,
) -> None:
    """Measure and print the tables.

    Args:
        seeds: number of starts of each program.
        programs: some of the programs, by name; all by default.
        csv_file: also write the tables' rows, and all that was said of each run, here.
        themes: files to take the programs from.
    """
    console, results, said = Console(stderr=True), [], []
    for name in track(selected(programs, themes), description="programs", console=console):
        results.append(judge(name, themes, seeds))
        said += runs_rows(results[-1])
        Report(csv_file, [{"table": "runs", **row} for row in said]).save()  # what a measuring that is cut short has
        console.print(f"{name}: found in {sum(one.found for one in results[-1].runs)} of {seeds}")
    faulty = [one for one in results if one.program.fault]
    report = Report(csv_file)
    report.table("faults", [fault_row(one) for one in faulty], last_apart=False)
    if faulty:
        report.table("all faults", sum_of_faults(faulty), last_apart=False)
        report.table("repaired twins, accused", accused([(one.program.name, one.twins) for one in faulty]))
    if healthy := [(one.program.name, one.runs) for one in results if not one.program.fault]:
        report.table("healthy programs, accused", accused(healthy))
    told = ("program", "kind", "seed", "failed", "error")
    broken = [{key: row[key] for key in told} for row in said if row["failed"] or row["error"]]
    report.table("runs that ended early, or were not watched to the end", broken, last_apart=False)
    report.rows += [{"table": "runs", **row} for row in said]
    report.save()


if __name__ == "__main__":
    auto_cli(main)
