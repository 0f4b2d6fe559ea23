"""Measure which faulty training runs gradwatch finds and names, and which healthy runs it accuses.

    python tests/benchmarks/detection/measure.py --half develop --what '[detect,causes,healthy]' --csv_file table.csv

Each family holds pairs: a program with a fault, and the same one without it. A fault counts if it does harm by the rule
in truth.py; the other pairs are listed and left out. The programs of a family are split by the hash of their names:
thresholds may be chosen on the half ``develop``, and the half ``unseen`` is for the final table only. Runs are kept in
``runs.jsonl`` under a digest of the program and of gradwatch's source, so only changed programs are trained again.
Intervals are Wilson's at 95 %, as if the runs of one program were independent.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from baselines import judged
from cases import chosen
from cures import Cure, cure, not_cured, ways
from evidence import Evidence, Look, gather
from findings_tables import accused, beside, causes, detection, false_alarms, left_out, missed, verdicts
from jsonargparse import auto_cli
from program import Case, Half
from store import Store, source_of, source_of_gradwatch
from tables import Report
from watching import unwatched, watched

What = Literal["detect", "causes", "healthy", "baselines", "remedies", "truth"]
RUNS = Path(__file__).parent / "runs.jsonl"


def main(
    half: Half | Literal["both"] = "develop",
    families: list[str] | None = None,
    what: Sequence[What] = ("detect", "causes", "healthy"),
    seeds: int | None = None,
    processes: int = 1,
    csv_file: Path | None = None,
    runs_file: Path | None = RUNS,
) -> None:
    """Measure and print the tables.

    Args:
        half: develop (thresholds may be chosen on it), unseen (the final table), or both.
        families: of faults, or groups of healthy programs; all by default.
        what: the tables: detect, causes, healthy; baselines (published rules on all programs); remedies (the
            faulty programs treated by the first suggestion, the best of a trial, or a remedy drawn at random); truth
            (the outcomes of the programs, unwatched).
        seeds: runs of each program, in place of 3 of a pair and 5 of a healthy program.
        processes: number of trainings at a time.
        csv_file: also write the tables' rows here.
        runs_file: file of kept runs; null keeps none.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    report, store = Report(csv_file), Store(runs_file)
    cases = [case for case in chosen(half, families) if _is_asked(case, what)]
    # The verdict alone, whether a fault does harm, needs no watching.
    look = (
        _gradwatch() if {"detect", "causes", "healthy", "baselines"} & set(what) else Look("unwatched", "", unwatched)
    )
    evidence = gather(cases, look, store, processes, seeds)
    _faults(report, [seen for seen in evidence if seen.case.twin], what)
    if "healthy" in what:
        _healthy(report, [seen for seen in evidence if not seen.case.twin])
    if "baselines" in what:
        look = Look("baselines", source_of("recording.py", "baselines.py"), judged)
        rows = beside(evidence, gather(cases, look, store, processes, seeds))
        report.table("beside published rules", rows, last_apart=False)
    if "remedies" in what:
        _remedies(report, cure([seen for seen in evidence if seen.case.twin], store))
    if "truth" in what:
        report.table("truth", verdicts(evidence))
    report.table("left out", left_out(evidence), last_apart=False)
    report.save()


def _remedies(report: Report, cures: Sequence[Cure]) -> None:
    report.table("remedies", ways(cures))
    report.table("not cured by the first suggestion", not_cured(cures), last_apart=False)


def _gradwatch() -> Look:
    return Look("gradwatch", source_of_gradwatch(), watched)


def _is_asked(case: Case, what: Sequence[What]) -> bool:
    if {"baselines", "truth"} & set(what):
        return True
    return "healthy" in what if case.twin is None else bool({"detect", "causes", "remedies"} & set(what))


def _faults(report: Report, evidence: Sequence[Evidence], what: Sequence[What]) -> None:
    if evidence and "detect" in what:
        report.table("faults", detection(evidence))
        report.table("not found in every run", missed(evidence), last_apart=False)
        harmed = [seen for seen in evidence if seen.verdict == "harmed"]
        report.table("healthy twins accused", accused(harmed, lambda seen: seen.twins), last_apart=False)
    if evidence and "causes" in what:
        report.table("causes", causes(evidence))


def _healthy(report: Report, evidence: Sequence[Evidence]) -> None:
    if evidence:
        report.table("healthy programs", false_alarms(evidence))
        rows = accused([seen for seen in evidence if seen.verdict is True], lambda seen: seen.runs)
        report.table("false alarms by program", rows, last_apart=False)


if __name__ == "__main__":
    auto_cli(main)
