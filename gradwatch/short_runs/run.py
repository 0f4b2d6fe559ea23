"""The result of a short training, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from gradwatch.pipeline.origin_search import may_be_of_nan
from gradwatch.progress import Judgement, judge_run
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.layer_table import LayerTable
from gradwatch.reporting.text import number, verdict
from gradwatch.shown import Shown

_SAYS_NOTHING_ELSE = ("not-learning", "spike")  # a spike may come in a run that rests on a plateau


class SetupFault(Exception):
    """A part of the training is missing, such as the optimizer, so that nothing can be trained."""


@dataclass(frozen=True, eq=False)
class Run(Shown):
    """A short training: its measured steps, the findings and their causes, and the error that ended it.

    Attributes:
        name: class of the module that was trained.
        history: a Snapshot of each measured step.
        findings: all of them, also those that have closed.
        diagnoses: their causes, the likeliest first.
        error: the exception that the training raised; None where it came to its end.
        chance: the loss of a constant prediction; NaN where it is not known.
        place: layer and line of the user's code that raised the error; empty where unknown.
        metrics: logged in a validation after the last step; empty where there was none.

    Example:
        >>> run = Run("Net", (Snapshot(0, (), loss=2.0), Snapshot(1, (), loss=1.5)))
        >>> run.is_healthy, run.headline
        (True, 'no fault found: Net, 2 steps, loss 2.00 to 1.50; too few steps to tell whether it learns: 2 of 300')
    """

    name: str
    history: tuple[Snapshot, ...] = ()
    findings: tuple[Finding, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    error: Exception | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    chance: float = math.nan
    place: str = ""

    @property
    def steps(self) -> int:
        """Number of optimizer steps, up to the last that was measured."""
        return self.history[-1].step + 1 if self.history else 0

    @property
    def losses(self) -> tuple[float, float]:
        """Loss of the first and of the last step; NaN where none is known, ``inf`` where it was NaN."""
        known = [snapshot.loss for snapshot in self.history if not math.isnan(snapshot.loss)]
        return (known[0], known[-1]) if known else (math.nan, math.nan)

    @property
    def judgement(self) -> Judgement:
        """The course of the loss."""
        found = [finding for finding in self.findings if finding.kind not in _SAYS_NOTHING_ELSE]
        return judge_run(self.history, self.chance, is_suspect=bool(found))

    @property
    def is_healthy(self) -> bool:
        """Return True if there were steps, and nothing was found in them."""
        return bool(self.history) and not (self.findings or self.diagnoses or self.error)

    @property
    def headline(self) -> str:
        """The result in a line."""
        first, last = self.losses
        loss = "" if math.isnan(first) else f", loss {number(first)} to {number(last)}"
        what = f"{self.name}, {self.steps} step{'s' * (self.steps != 1)}{loss}"
        course, is_known = self.judgement, not math.isnan(first)
        if not self.is_healthy:
            return f"not healthy: {what}"
        if is_known and course.course == "too few steps":
            return f"no fault found: {what}; {course}"
        if is_known and course.course == "no loss" and not course.now < course.start:
            return f"no fault found: {what}, which is not below its start"
        return f"healthy: {what}{' (learns)' if course.course == 'learns' else ''}"

    @property
    def trouble(self) -> str:
        """The crash, or the lack of any step, in a sentence; empty for a training that took place."""
        if isinstance(self.error, SetupFault):
            return str(self.error)
        if self.error is not None:
            text = f"{type(self.error).__name__}: {self.error}".strip().removesuffix(":")
            return f"the training raised {text}" + (f" at {self.place}" if self.place else "")
        if not self.history:
            return "no optimizer step was made: expected batches, and a training_step that returns a loss"
        return ""

    @property
    def is_hopeless(self) -> bool:
        """Return True if it crashed, and not by NaN or by what was found before: no change of the model mends that."""
        return self.error is not None and not (may_be_of_nan(self.error) and self.findings)

    def shown(self, name: Callable[[str], str] = str) -> Iterator[RenderableType]:
        """Yield the headline; where something is wrong, also the layers and the verdict.

        Args:
            name: gives each finding and cause the name to print, such as one with its identifier.
        """
        yield Text(self.headline, style="bold green" if self.is_healthy else "bold red")
        if self.is_healthy:
            return
        if self.trouble:
            yield Text(self.trouble, style="bold red")
        if self.history:
            yield Text()
            yield LayerTable(self.history[-1], self.findings)
        if self.findings or self.diagnoses:
            yield Text()
            yield verdict(self.findings, self.diagnoses, name)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render all of it."""
        yield from self.shown()

    def __str__(self) -> str:
        return as_text(self)


class Interrupted(KeyboardInterrupt):
    """Ctrl+C in a short training; ``run`` is the training up to there."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


def as_text(renderable: RenderableType, width: int = 100) -> str:
    """Return the text that a terminal of that width would show, without colours.

    Example:
        >>> as_text(Text("healthy", style="bold green"))
        'healthy'
    """
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
