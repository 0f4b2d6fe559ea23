"""``gradwatch cure``: train copies with remedies, rank them by result, print the patch of the best."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax

from gradwatch.commands.check import WRONG_USE
from gradwatch.commands.counts import positive
from gradwatch.commands.target import Target, UsageError, add_target, importable_here, read_target
from gradwatch.reporting.terminal import wide_console
from gradwatch.runs.aside import aside


def add(commands: Any) -> None:
    """Declare the command and its options."""
    what = "Train copies of a model, each with one remedy, for a few steps, and rank the remedies by their result."
    parser = commands.add_parser("cure", help="try remedies and rank them", description=what, allow_abbrev=False)
    add_target(parser)
    parser.add_argument("--steps", type=positive, default=200, help="steps of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every training (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="REPORT.MD", help="write a report in Markdown")
    parser.set_defaults(run=run, takes_more=True)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Try the remedies and show what came out; returns the exit code."""
    with importable_here():
        try:
            with aside(options.seed):
                target = read_target(options, rest)
            trial = _try(target, options)
        except UsageError as error:
            print(f"gradwatch cure: {error}", file=sys.stderr)
            return WRONG_USE
    console = wide_console()
    console.print(trial.table())
    if trial.patch:
        console.print("\nThe best of them, as code:\n", Syntax(trial.patch, "python", background_color="default"))
    if options.out is not None:
        trial.report(options.out)
        console.print(f"\nThe report: [bold]{escape(str(options.out))}[/bold]")
    return 0


def _try(target: Target, options: argparse.Namespace) -> Any:
    try_remedies = import_module("gradwatch.remedies").try_remedies  # late: a check has no need of it
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=wide_console(), transient=True) as progress:
        task = progress.add_task("training", total=None)

        def advance(*_: object) -> None:
            progress.advance(task)

        settings = {"steps": options.steps, "seed": options.seed, "on_progress": advance}
        return try_remedies(target.module, target.data, **settings)
