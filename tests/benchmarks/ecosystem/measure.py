"""Measure gradwatch on trainings with the models of public libraries.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m ecosystem.measure --csv_file ecosystem.csv

``pip install gradwatch[ecosystem]`` brings the libraries; programs whose library is missing are left out. It takes
about half an hour on a free core.

A sound program is a library's model with the optimizer, the rate and the loss of the library's documentation. It counts
if it learns: in each run its score on held-out data passes a threshold. The thresholds were set after first runs with
one seed, between the score of the untrained model and that of the trained one. A faulty
program is a sound one with one thing changed. It counts if it does harm: on average it misses at least a quarter of
what the sound one gains. Each is fitted with ``GradientMonitor()``. It is accused if anything was said of it, found if
there is a finding or a cause, and named if one of the causes agreed beforehand comes first, or among the first three.
``--programs '[TabNet, GPT-2]'`` selects sound and faulty programs. Intervals are Wilson's at 95 %, as if all runs were
independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from blind.measure import share
from detection.tables import Report, Row
from ecosystem.faults import FAULTS
from ecosystem.judging import PROGRAMS, Run, faulty_run, harms, sound_run
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track


def sound_row(name: str, runs: Sequence[Run]) -> Row:
    """Return the outcome of a sound program, which says that it learned."""
    program = PROGRAMS[name]
    return {
        "program": name,
        "library": program.needs,
        "source": program.source,
        "score": program.measure,
        "before": scores(one.before for one in runs),
        "after": scores(one.after for one in runs),
        "learned from": program.learned,
        "learned": sum(program.has_learned(one.after) > program.has_learned(one.before) for one in runs),
        "runs": len(runs),
        "accused": sum(one.is_accused for one in runs),
    }


def scores(numbers: object) -> str:
    return " ".join(f"{number:.3g}" for number in numbers)  # type: ignore[attr-defined]


def sum_of_sound(rows: Sequence[Row]) -> Row:
    """Return the shares of programs and of runs that are accused, of those that learned."""
    learned = [row for row in rows if row["learned"] == row["runs"]]
    programs = share(sum(bool(row["accused"]) for row in learned), len(learned))
    runs = share(sum(int(str(row["accused"])) for row in learned), sum(int(str(row["runs"])) for row in learned))
    return {"programs that learn": len(learned), "accused, in any run": programs, "runs accused": runs}


def faulty_row(name: str, runs: Sequence[Run], sound: Sequence[Run]) -> Row:
    """Return what came of a faulty program, and what was said of it."""
    fault = FAULTS[name]
    return {
        "fault": name,
        "of": fault.of,
        "after": scores(one.after for one in runs),
        "sound": scores(one.after for one in sound),
        "harms": harms(PROGRAMS[fault.of], sound, runs),
        "runs": len(runs),
        "found": sum(one.is_accused for one in runs),
        "first": sum(one.names(fault.causes, 1) for one in runs),
        "three": sum(one.names(fault.causes, 3) for one in runs),
        "expected": " / ".join(fault.causes),
        "said": " / ".join(dict.fromkeys(one.causes[0] if one.causes else "-" for one in runs)),
    }


def sum_of_faulty(rows: Sequence[Row]) -> Row:
    counted = [row for row in rows if row["harms"]]
    runs = sum(int(str(row["runs"])) for row in counted)
    shares = {key: share(sum(int(str(row[key])) for row in counted), runs) for key in ("found", "first", "three")}
    return {"faults that harm": len(counted), "runs": runs, **shares}


def words(name: str, runs: Sequence[Run]) -> list[Row]:
    """Return a row for each thing that was said of a program."""
    return [
        {"program": name, "seed": seed, "said": text}
        for seed, one in enumerate(runs)
        for text in (*one.findings, *one.texts, *one.out_of_service, *([one.error] if one.error else []))
    ]


def selected(programs: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the names of the sound and of the faulty programs to run.

    Raises:
        ValueError: when a program does not exist.
    """
    known = [*PROGRAMS, *FAULTS]
    wrong = [name for name in programs or () if name not in known]
    if wrong:
        raise ValueError(f"there is no {wrong[0]!r}; expected some of: {', '.join(known)}")
    chosen = programs or known
    sound = [name for name in PROGRAMS if name in chosen and PROGRAMS[name].is_there]
    return sound, [name for name in FAULTS if name in chosen and PROGRAMS[FAULTS[name].of].is_there]


def main(seeds: int = 2, programs: list[str] | None = None, csv_file: Path | None = None) -> None:
    """Measure and print the tables.

    Args:
        seeds: number of starts of each program.
        programs: some of the programs, by name; all by default.
        csv_file: also write the tables' rows here.
    """
    sound, faulty = selected(programs)
    runs_of = cache(lambda name: [sound_run(name, seed) for seed in range(seeds)])
    report, sound_rows, faulty_rows, said = Report(csv_file), [], [], []
    console = Console(stderr=True)
    for name in track(sound, description="sound programs", console=console):
        sound_rows.append(sound_row(name, runs_of(name)))
        said += words(name, runs_of(name))
        console.print(sound_rows[-1])  # a run that is cut short has told this much
    for name in track(faulty, description="faulty programs", console=console):
        runs = [faulty_run(name, seed) for seed in range(seeds)]
        faulty_rows.append(faulty_row(name, runs, runs_of(FAULTS[name].of)))
        console.print(faulty_rows[-1])
    report.table("sound programs", sound_rows, last_apart=False)
    report.table("what was said of sound programs", said, last_apart=False)
    report.table("faulty programs", faulty_rows, last_apart=False)
    if sound_rows:
        report.table("all sound programs", [sum_of_sound(sound_rows)], last_apart=False)
    if faulty_rows:
        report.table("all faulty programs", [sum_of_faulty(faulty_rows)], last_apart=False)
    report.save()


if __name__ == "__main__":
    auto_cli(main)
