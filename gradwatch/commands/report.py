"""``gradwatch report``: a run as one HTML file, to be read anywhere and sent to others."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradwatch.commands.problems import WRONG_USE
from gradwatch.commands.target import UsageError
from gradwatch.diagnosis import diagnose
from gradwatch.records import Diagnosis
from gradwatch.reporting.html.report import write_report
from gradwatch.reporting.reading import Record, is_parquet, read_record
from gradwatch.reporting.record_files import remote_url

RECORD = "gradwatch.jsonl"
_MOST_LISTED = 8
_MOST_BYTES = 2**30  # of columns in memory: 500 measured steps of 10,000 layers


@dataclass(frozen=True)
class Run:
    """A run, read from its record."""

    path: str | Path
    record: Record

    @cached_property
    def diagnoses(self) -> list[Diagnosis]:
        """The causes: those in the record, or where the run did not come to its end, worked out from it."""
        if self.record.diagnoses is not None:
            return self.record.diagnoses
        return diagnose(self.record.findings, self.record.snapshots)

    @property
    def title(self) -> str:
        """The model's class, where it is known, and the folder."""
        name = str(self.path).removesuffix(f"/{RECORD}")
        return ", ".join(filter(None, (self.record.settings.get("model", ""), name)))


def read_run(place: str) -> Run:
    """Read the run of a folder, a record or its URL.

    Raises:
        UsageError: when there is no record, several, or none that can be read.
    """
    path = place if remote_url(place) else _record_in(Path(place))
    try:
        record = read_record(path, _MOST_BYTES)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not (record.snapshots or record.findings):
        raise UsageError(f"{path} holds no measured step; expected a record of gradwatch ({RECORD})")
    return Run(path, record)


def _record_in(path: Path) -> Path:
    """Return the record that a path names: itself, or the only one in the folder or below it."""
    if path.is_file() or is_parquet(path):
        return path
    if not path.is_dir():
        raise UsageError(f"{path} is not there; expected a run's folder or its {RECORD}")
    named = f"{Path(RECORD).stem}*.jsonl"  # a second run in the same folder has a number in its name
    found = sorted(path.glob(named)) or sorted(path.glob("*.parquet")) or sorted(path.rglob(named))
    found = found or sorted(path.glob("*.jsonl"))
    if not found:
        raise UsageError(f"{path} holds no {RECORD}; expected a run's folder or the record itself")
    if len(found) > 1:
        listed = "".join(f"\n  {each}" for each in found[:_MOST_LISTED])
        more = f"\n  and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        raise UsageError(f"{path} holds {len(found)} records; give one of them:{listed}{more}")
    return found[0]


def add(commands: Any) -> None:
    """Declare the command and its options."""
    what = (
        "Write a run as one HTML file: its verdict, causes, network, charts, layers and settings. It needs no network."
    )
    parser = commands.add_parser("report", help="write a run as one HTML file", description=what, allow_abbrev=False)
    parser.add_argument("run_place", metavar="RUN", help="a run's folder or its gradwatch.jsonl")
    parser.add_argument("-o", "--out", metavar="REPORT.HTML", help="default: gradwatch.html beside the record")
    parser.set_defaults(run=run, takes_more=False)


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Write the report, say where it is, and return the exit code."""
    try:
        found = read_run(options.run_place)
        out = options.out or f"{str(found.path).removesuffix('.jsonl').removesuffix('.parquet')}.html"
        written = write_report(out, found.record, found.diagnoses, found.title)
    except (UsageError, ImportError, OSError) as error:
        print(f"gradwatch report: {error}", file=sys.stderr)
        return WRONG_USE
    print(f"The report: {written if isinstance(written, str) else Path(written)}")
    return 0
