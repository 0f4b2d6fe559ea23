"""Train any set of the remedies on one data set, with the same seeds, and write a scoreboard.

    python examples/compare.py --dataset fashion-mnist --data-dir DIR --max-epochs 100 --jobs 2 --out FOLDER

Each run has a process of its own with one thread; one that fails is a row with its error, and the others go on. A
command that was interrupted goes on where it was when it is given again: runs that had ended are not run again. In the
folder are then ``scoreboard.md``, ``scoreboard.csv``, pictures, and in ``runs/<remedy>/seed-<seed>`` the logs and the
curves of each run: ``tensorboard --logdir FOLDER/runs`` compares them (see its HParams tab).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradwatch.examples.comparison import scoreboard
from gradwatch.examples.comparison.processes import Ended, Message, Processes, Started
from gradwatch.examples.comparison.progress import Display
from gradwatch.examples.comparison.remedies import RUNS, find
from gradwatch.examples.comparison.results import load_all
from gradwatch.examples.comparison.tasks import Task
from gradwatch.examples.comparison.training import train
from gradwatch.examples.run import load_data, make_parser

FAILED, INTERRUPTED = 1, 130


def main(args: list[str] | None = None) -> int:
    """Train the chosen remedies; the exit code is 1 if a run failed, 130 if it was interrupted.

    Args:
        args: the command line; default: the program's own.
    """
    parser = make_parser(str(__doc__).splitlines()[0])
    add_options(parser)
    options = parser.parse_args(args)
    tasks = make_tasks(parser, options)
    load_data(parser, options)  # what is missing is said once, now
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        run(tasks, options.jobs, console)
    except KeyboardInterrupt:
        write_tables(options.out, console)
        console.print("interrupted; the same command goes on from here")
        return INTERRUPTED
    write_tables(options.out, console)
    draw_pictures(options.out, console)
    return 0 if all(task.has_ended() for task in tasks) else FAILED


def add_options(parser: ArgumentParser) -> None:
    """Add the options of this example alone."""
    parser.add_argument("--seeds", type=int, nargs="+", help="train with each of these; --seed is one")
    parser.add_argument("--jobs", type=PositiveInt, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/comparison"), help="where all is written")
    names = ", ".join(run.name for run in RUNS)
    parser.add_argument("--only", type=str, nargs="+", help=f"remedies, or classes as module.Class; of: {names}")


def make_tasks(parser: ArgumentParser, options: Namespace) -> list[Task]:
    """Return the chosen tasks; exit with a message if the options are invalid."""
    try:
        chosen = [find(name) for name in options.only] if options.only else RUNS
    except ValueError as error:
        parser.error(str(error))
    settings = {name: options[name] for name in ("dataset", "data_dir", "batch_size", "max_epochs", "fast")}
    tasks = [
        Task(run, seed, folder=options.out / "runs" / run.name / f"seed-{seed}", **settings)
        for seed in dict.fromkeys(options.seeds or [options.seed])
        for run in {run.name: run for run in chosen}.values()
    ]
    refuse_to_mix(parser, tasks[0], options.out)
    return tasks


def refuse_to_mix(parser: ArgumentParser, task: Task, folder: Path) -> None:
    """Exit if the folder contains runs with other settings, as one table must not mix them."""
    for result in load_all(folder):
        for name, new in task.shared_settings().items():
            if (old := result.settings.get(name)) != new:
                parser.error(f"{folder} holds runs with {name}={old}, now it is {new}; give another folder as --out")


def run(tasks: Sequence[Task], jobs: int, console: Console) -> None:
    """Train the unfinished tasks, the longest first, and write each result to its folder."""
    todo = sorted((task for task in tasks if not task.has_ended()), key=lambda task: -task.epochs)
    for task in todo:
        shutil.rmtree(task.folder, ignore_errors=True)
    with Display(tasks, console) as display, closing(Processes(train, jobs).events(todo)) as events:
        for task in tasks:
            if task not in todo:
                display.skipped(task)
        for task, event in events:
            match event:
                case Started():
                    display.started(task)
                case Message(epochs):
                    display.epochs(task, epochs)
                case Ended():
                    display.ended(task, task.outcome(event))


def write_tables(folder: Path, console: Console) -> None:
    """Write the scoreboard of all runs in the folder, and print the spread over their seeds."""
    results = load_all(folder)
    if not results:
        return
    scoreboard.write(results, folder)
    if scoreboard.has_seeds(results):
        console.print(as_rich(scoreboard.over_seeds(results)))
    console.print(f"scoreboard: {escape(str(folder / scoreboard.MARKDOWN))}", highlight=False, soft_wrap=True)


def draw_pictures(folder: Path, console: Console) -> None:
    """Draw all successful runs in the folder."""
    if all(result.error for result in load_all(folder)):
        return
    try:
        from gradwatch.examples import plots
    except ImportError:
        console.print("no pictures: they need matplotlib; pip install matplotlib", markup=False)
        return
    for path in (plots.curves(folder), plots.layers(folder)):
        console.print(f"picture: {escape(str(path))}", highlight=False, soft_wrap=True)


def as_rich(table: scoreboard.Table) -> Table:
    """Return the table for the terminal."""
    shown = Table(*table.header, title=table.title)
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown


if __name__ == "__main__":
    sys.exit(main())
