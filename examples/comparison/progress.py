"""Progress of a comparison: a bar for each running remedy, one for all, and a line for each that ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from gradwatch.examples.comparison.results import Result
from gradwatch.examples.comparison.tasks import Task


class Display:
    """The bars, counted in epochs; a context manager.

    Args:
        tasks: all tasks.
        console: output of the bars.
    """

    def __init__(self, tasks: Sequence[Task], console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
        self._progress = Progress(*columns, TimeElapsedColumn(), Remaining(), console=console)
        self._all = self._progress.add_task("all", total=sum(task.epochs for task in tasks))
        self._bars: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for bar in self._bars.values():
            self._progress.update(bar, visible=False)
        self._progress.stop()

    def skipped(self, task: Task) -> None:
        """Count a run that had ended before."""
        self._progress.advance(self._all, task.epochs)

    def started(self, task: Task) -> None:
        """Show a bar for the run."""
        self._done[task.title] = 0
        self._bars[task.title] = self._progress.add_task(escape(task.title), total=task.epochs)

    def epochs(self, task: Task, done: int) -> None:
        """Set the number of finished epochs of a run."""
        self._progress.update(self._bars[task.title], completed=done)
        self._progress.advance(self._all, done - self._done[task.title])
        self._done[task.title] = done

    def ended(self, task: Task, result: Result) -> None:
        """Replace the run's bar by a line."""
        self.epochs(task, task.epochs)
        self._progress.remove_task(self._bars.pop(task.title))
        if result.error:
            message = f"[red]{escape(task.title)} failed:[/red] {escape(result.reason)}"
        else:
            message = f"{escape(task.title)}: test accuracy {result.test_accuracy:.4f} in {result.seconds:.0f} s"
        self._progress.console.print(message, highlight=False, soft_wrap=True)
