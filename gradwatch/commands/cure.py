"""``gradwatch cure``: train copies with remedies, rank them by result, and print the patch of the best."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax

from gradwatch import GradientTransform
from gradwatch.commands.lightning_config import read_target
from gradwatch.commands.problems import SICK, WRONG_USE
from gradwatch.commands.target import Target, UsageError, add_target, importable_here, positive
from gradwatch.commands.words import crash_in_full
from gradwatch.remedies import Setup
from gradwatch.reporting.terminal import wide_console
from gradwatch.reporting.text import verdict
from gradwatch.short_runs.run import SetupFault
from gradwatch.short_runs.sandbox import isolated
from gradwatch.trial import Trial, try_remedies


def add(commands: Any) -> None:
    """Declare the command and its options."""
    what = "Train copies of a model, each with one remedy, for a few steps, and rank the remedies by their result."
    parser = commands.add_parser("cure", help="try remedies and rank them", description=what, allow_abbrev=False)
    add_target(parser)
    parser.add_argument("--steps", type=positive, default=200, help="steps of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every training (default: %(default)s)")
    parser.add_argument("--traceback", action="store_true", help="all lines of a crash, not only those of your code")
    parser.add_argument("--out", type=Path, metavar="REPORT.MD", help="write a report in Markdown")
    parser.set_defaults(run=run, takes_more=True)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Try the remedies, show the result, and return the exit code."""
    with importable_here():
        try:
            with isolated(options.seed):
                target = read_target(options, rest)
            trial = _try(target, options)
        except UsageError as error:
            print(f"gradwatch cure: {error}", file=sys.stderr)
            return WRONG_USE
    if isinstance(trial.error, SetupFault):
        print(f"gradwatch cure: {trial.error}", file=sys.stderr)
        return WRONG_USE
    if trial.error is not None:
        print(crash_in_full(trial.error, whole=options.traceback), file=sys.stderr)
        if trial.best is None:
            print("gradwatch cure: the training crashes without a remedy, and none mends it", file=sys.stderr)
            return SICK
    _show(trial)
    if options.out is not None:
        trial.report(options.out)
        wide_console().print(f"\nThe report: [bold]{escape(str(options.out))}[/bold]")
    return 0


def _try(target: Target, options: argparse.Namespace) -> Trial:
    # Remedies add and remove transforms, so those of the callbacks belong into the set-up.
    transforms = tuple(each.transform for each in target.callbacks if isinstance(each, GradientTransform))
    others = [each for each in target.callbacks if not isinstance(each, GradientTransform)]
    setup = Setup(target.module, transforms, {**target.options, "callbacks": others})
    data = target.module.train_dataloader() if target.data is None else target.data
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=wide_console(), transient=True) as progress:
        task = progress.add_task("untreated", total=None)

        def advance(name: str, done: int, total: int) -> None:
            progress.update(task, description=escape(name), completed=done, total=total)

        return try_remedies(setup, data, steps=options.steps, seed=options.seed, on_progress=advance)


def _show(trial: Trial) -> None:
    console = wide_console()
    console.print(verdict((), trial.diagnoses) if trial.diagnoses else "Nothing was found in the untreated training.")
    console.print()
    console.print(trial.table())
    if trial.patch:
        console.print("\nThe best of them, as code:\n")
        _print_code(console, trial.patch)
    else:
        console.print("\nNo remedy beats the untreated training.")


def _print_code(console: Console, code: str) -> None:
    """Print code as it is, to be copied: rich cuts a Syntax at the edge of the screen, and pads it up to there."""
    text = Syntax("", "python", background_color="default").highlight(code)
    text.rstrip()
    console.print(text, soft_wrap=True)
