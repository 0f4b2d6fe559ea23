"""``gradwatch report``: a run as one HTML file, to be read anywhere and sent to others."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gradwatch.commands.check import WRONG_USE
from gradwatch.commands.runs import read_run
from gradwatch.commands.target import UsageError
from gradwatch.reporting.html.report import write_report


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
        out = options.out or f"{str(found.path).removesuffix('.jsonl')}.html"
        written = write_report(out, found.record, found.diagnoses, found.title)
    except (UsageError, OSError) as error:
        print(f"gradwatch report: {error}", file=sys.stderr)
        return WRONG_USE
    print(f"The report: {written if isinstance(written, str) else Path(written)}")
    return 0
