"""Measure how many small faulty programs the first suggested remedy and the best row of a trial cure.

``python measure.py [--only WORD] [--csv FILE]``; all 31 take about 20 minutes on one core. A program is cured if its
score on data that no choice used comes within a point of its repaired twin's.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "detection"))

from cures import CHOSEN, JUDGED, NEAR, _first, _setup, fit, treat
from program import Case
from programs import programs

from gradwatch import GradientMonitor
from gradwatch.trial import suggest, try_remedies

HARM = 0.05  # of the score: a fault that costs less is none that a cure could be measured by


def measured(case: Case) -> dict[str, Any]:
    """Return the scores of one program."""
    program = case.program
    monitor = GradientMonitor(summary=False, record_path=False, on_finding=lambda finding: None)
    fit(_setup(program, CHOSEN), program, CHOSEN, monitor)
    fresh = _setup(program, CHOSEN)
    diagnoses = monitor.diagnosis()
    first = _first(suggest(diagnoses, fresh, monitor.history))
    trial = try_remedies(fresh, _batches(program), steps=program.steps, seed=CHOSEN)
    untreated = fit(_setup(program, JUDGED), program, JUDGED)
    assert case.twin is not None
    twin = fit(_setup(case.twin, JUDGED), case.twin, JUDGED)
    best = trial.best.remedy if trial.best else None
    scores = [treat(program, remedy, untreated) for remedy in (first, best)]
    return {
        "program": case.name, "twin": twin, "untreated": untreated, "first": scores[0], "best": scores[1],
        "causes": "; ".join(diagnosis.cause for diagnosis in diagnoses), "first remedy": repr(first),
        "best remedy": repr(best), "rows": "; ".join(f"{row.name} {row.result:.2f}" for row in trial.rows),
    }  # fmt: skip


def _batches(program: Any) -> Any:
    from adapter import Batches

    return Batches(program, CHOSEN)


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the shares cured, of the programs whose fault does harm."""
    harmed = [row for row in rows if row["untreated"] < row["twin"] - HARM]
    shares = {way: sum(row[way] >= row["twin"] - NEAR for row in harmed) for way in ("first", "best")}
    return f"{len(harmed)} harmed; cured by the first remedy {shares['first']}, by the best row {shares['best']}"


def main() -> None:
    """Print a line for each program, and the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="programs whose name has this word")
    parser.add_argument("--csv", type=Path, help="file for all that was measured")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    for case in programs():
        if args.only in case.name:
            row = measured(case)
            rows.append(row)
            marks = ["+" if row[way] >= row["twin"] - NEAR else "-" for way in ("first", "best")]
            print(f"{marks[0]}{marks[1]} {row['program']}: twin {row['twin']:.2f}, untreated {row['untreated']:.2f}, "
                  f"first {row['first']:.2f} {row['first remedy'][:50]}, best {row['best']:.2f} "
                  f"{row['best remedy'][:70]} [{row['causes']}]", flush=True)  # fmt: skip
            if args.csv:
                with args.csv.open("w", newline="") as file:
                    writer = csv.DictWriter(file, [*row])
                    writer.writeheader()
                    writer.writerows(rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
