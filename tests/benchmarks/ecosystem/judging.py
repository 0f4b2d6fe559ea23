"""One run of a program of the ecosystem: its score before and after, and what gradwatch says of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ecosystem.control import CONTROL
from ecosystem.dynamics import DYNAMICS
from ecosystem.faults import FAULTS
from ecosystem.generative import GENERATIVE
from ecosystem.images import IMAGES
from ecosystem.series import SERIES
from ecosystem.tables import TABLES
from ecosystem.task import Program, Task
from ecosystem.text import TEXT

from gradwatch import GradientMonitor, GradientWarning

PROGRAMS: dict[str, Program] = {**TEXT, **IMAGES, **TABLES, **SERIES, **GENERATIVE, **CONTROL, **DYNAMICS}
HARM = 0.25  # of the sound program's way from its first score to its last


@dataclass(frozen=True)
class Run:
    """The scores of one run, and the report on it.

    Attributes:
        before, after: score of the untrained and of the trained model.
        findings: kind, layers, step and message of each finding.
        causes: the likely causes, the likeliest first.
        texts: the causes with their evidence, and warnings that belong to no finding.
        out_of_service: the parts of the watching that failed.
        error: why the training crashed, or "".
    """

    before: float
    after: float
    findings: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    out_of_service: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_accused(self) -> bool:
        return bool(self.findings or self.causes or self.texts)

    def names(self, causes: Sequence[str], among: int) -> bool:
        """Return True if one of the causes is among the first."""
        return bool({*causes} & {*self.causes[:among]})


def run(task: Task) -> Run:
    """Train with a default monitor; a crash ends the training, and what was said until then counts."""
    monitor, before, error = GradientMonitor(summary=False, record_path=False), task.measured(), ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradientWarning)
        try:
            task.train(monitor)
        except Exception as crash:
            error = f"{type(crash).__name__}: {crash}"
    after = math.nan if error else task.measured()
    said = [str(one.message) for one in caught if issubclass(one.category, GradientWarning)]
    told = monitor.diagnosis()
    alone = [text for text in said if not monitor.findings]
    return Run(
        before,
        after,
        tuple(f"{one.kind} at step {one.step} in {places(one.layers)}: {one.message}" for one in monitor.findings),
        tuple(one.cause for one in told),
        (*(str(one) for one in told), *alone),
        tuple(map(str, monitor.out_of_service)),
        error,
    )


def places(layers: Sequence[str]) -> str:
    return ", ".join(layers) if len(layers) < 4 else f"{layers[0]}, {layers[1]} and {len(layers) - 2} more"


def sound_run(name: str, seed: int) -> Run:
    return run(PROGRAMS[name].built(seed))


def faulty_run(name: str, seed: int) -> Run:
    """Train a program with its fault; it starts from the score of the sound one, before the change."""
    fault = FAULTS[name]
    task = PROGRAMS[fault.of].built(seed)
    before = task.measured()
    fault.change(task)
    return replace(run(task), before=before)


def harms(program: Program, sound: Sequence[Run], faulty: Sequence[Run]) -> bool:
    """Return True if the faulty runs, on average, miss a good part of what the sound ones gain, or end in NaN."""
    way = sum(one.after - one.before for one in sound) / len(sound)
    missed = sum(one.after for one in sound) / len(sound) - sum(one.after for one in faulty) / len(faulty)
    return not missed / way < HARM
