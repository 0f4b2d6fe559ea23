"""Trains copies of a model, each with one remedy, on the same batches, and ranks what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from gradwatch.checks import require_whole
from gradwatch.remedies.activation import ReplaceActivations
from gradwatch.remedies.initialization import InitializeAgain
from gradwatch.remedies.remedy import Advice, Combination, NotApplicable, Remedy, Setup, copy_of
from gradwatch.short_runs.batches import first_batch
from gradwatch.trial.one_training import Interrupted, Measured, OneTraining
from gradwatch.trial.result import (
    TRAIN_LOSS,
    UNTREATED,
    Row,
    Trial,
    choose_metric,
    first_and_last,
    is_better_higher,
    rank,
    short_name,
)
from gradwatch.trial.suggestion import patch_or_nothing, suggest, usual

OnProgress = Callable[[str, int, int], object]
"""Called after each optimizer step with what is trained, the steps done so far, and those of the whole trial."""


def try_remedies(
    module: nn.Module | Setup,
    datamodule: Any,
    *,
    remedies: Sequence[Remedy] | None = None,
    steps: int = 200,
    seed: int = 0,
    metric: str | None = None,
    most: int = 6,
    on_progress: OnProgress | None = None,
) -> Trial:
    """Train copies of a module for a short time, one with each remedy and one without, and rank them.

    All start from the same seed and see the same batches in the same order, on the CPU; nothing is written to disk, and
    the module, the data and the random numbers stay as they are. A remedy that crashes is a row with its error. Ctrl+C
    ends the trial with the rows so far.

    Args:
        module: a LightningModule, or a :class:`Setup` where it comes with transforms and options of the Trainer.
        datamodule: a LightningDataModule, or the loader of the training batches.
        remedies: to try; None takes what :func:`suggest` makes of the untreated training's diagnosis, or what helps
            most often where nothing was found, and then the two best changes of the model together.
        steps: optimizer steps of each training.
        seed: of every training and of the batches.
        metric: to rank by, as the module logs it in validation; None takes its accuracy, else its ``val_loss``, else
            the mean training loss over the last tenth of the steps.
        most: how many suggested remedies are tried.
        on_progress: is told after each step: what is trained, the steps done, and those of the whole trial.

    Raises:
        ValueError: for a number out of range, or a metric that no training has logged.
        TypeError: when the module is no LightningModule.

    Example:
        >>> from gradwatch.examples.baseline import Baseline
        >>> from gradwatch.examples.data import ImageData
        >>> trial = try_remedies(Baseline(64, depth=1), ImageData(), remedies=[InitializeAgain()], steps=2)
        >>> sorted(row.name for row in trial.rows)
        ["InitializeAgain(scheme='auto')", 'untreated']
    """
    require_whole("try_remedies", steps=steps, most=most)
    setup = module if isinstance(module, Setup) else Setup(module)
    if not setup.trains_itself:
        raise TypeError(f"module is a {type(setup.module).__name__}; expected a LightningModule, which trains itself")
    batch = setup.batch if setup.batch is not None else first_batch(datamodule, seed)
    on_host = replace(setup, module=copy_of(setup.module).cpu(), batch=batch)
    session = _Session(on_host, datamodule, steps, seed, on_progress)
    try:
        session.run(remedies, most)
    except (Interrupted, KeyboardInterrupt):
        if not session.done:
            raise
        session.interrupted = True
    return session.trial(metric)


@dataclass
class _Session:
    """The trainings that were done so far."""

    setup: Setup
    data: Any
    steps: int
    seed: int
    on_progress: OnProgress | None
    done: list[tuple[Row, Measured]] = field(default_factory=list)
    diagnoses: tuple[Any, ...] = ()
    interrupted: bool = False
    advice: tuple[Advice, ...] = ()
    _planned: int = 1

    def run(self, remedies: Sequence[Remedy] | None, most: int) -> None:
        """The untreated training, then one with each remedy."""
        self._train(None)
        untreated = self.done[0][1]
        self.diagnoses = tuple(untreated.diagnoses)
        chosen = [*remedies] if remedies is not None else self._suggested(untreated, most)
        self._planned = 1 + len(chosen) + (remedies is None and len(chosen) > 1)
        for remedy in chosen:
            self._train(remedy)
        both = self._best_two() if remedies is None else None
        if both is not None:
            self._train(both)

    def _suggested(self, untreated: Measured, most: int) -> list[Remedy]:
        found = suggest(untreated.diagnoses, self.setup, untreated.history)
        self.advice = tuple(remedy for remedy in found if isinstance(remedy, Advice))
        return ([remedy for remedy in found if not isinstance(remedy, Advice)] or usual(self.setup))[:most]

    def _train(self, remedy: Remedy | None) -> None:
        started = time.monotonic()
        name = short_name(remedy) if remedy else UNTREATED
        measured = Measured()
        try:
            treated = remedy.apply(self.setup) if remedy else self.setup.copy()
            training = OneTraining(treated, self.data, self.steps, self.seed)
            measured = training.run(lambda done: self._tell(name, done))
        except NotApplicable as error:
            measured = replace(measured, error=f"not applicable: {error}")
        except Exception as error:  # a row, and not the end
            measured = replace(measured, error=f"{type(error).__name__}: {error}")
        self.done.append((self._row(remedy, measured, time.monotonic() - started), measured))
        if measured.interrupted:
            raise Interrupted

    def _tell(self, name: str, done: int) -> None:
        if self.on_progress is not None:
            self.on_progress(name, len(self.done) * self.steps + done, self._planned * self.steps)

    def _row(self, remedy: Remedy | None, measured: Measured, seconds: float) -> Row:
        first, last = first_and_last(measured.history)
        error = measured.error or ("broken off" if measured.interrupted else "")
        findings = tuple(finding for finding in measured.findings if finding.is_open)
        code = "" if remedy is None or error else patch_or_nothing(remedy, self.setup)
        return Row(remedy, math.nan, measured.loss, findings, first, last, seconds, error, code)

    def trial(self, metric: str | None) -> Trial:
        """The rows, ranked."""
        chosen = self._metric(metric)
        higher = is_better_higher(chosen)
        rows = [replace(row, result=measured.value_of(chosen)) for row, measured in self.done]
        ranked = rank(rows, higher)
        return Trial(ranked, chosen, higher, self.steps, self.seed, self.diagnoses, self.interrupted, self.advice)

    def _metric(self, metric: str | None = None) -> str:
        finished = [measured.metrics for _, measured in self.done if not measured.error and not measured.interrupted]
        known = sorted(set.intersection(*map(set, finished))) if finished else []
        if metric is not None and metric != TRAIN_LOSS and finished and metric not in known:
            raise ValueError(f"no training logged {metric!r} in validation; logged were: {', '.join(known) or 'none'}")
        return metric or choose_metric(known)

    def _best_two(self) -> Remedy | None:
        """The two best changes of the model that beat the untreated training and can be had together."""
        chosen = self._metric()
        better: list[Remedy] = []
        for row in self.trial(None).rows:
            if row.remedy is None:
                break
            if row.remedy.changes_model and not row.error and type(row.remedy) not in map(type, better):
                better.append(row.remedy)
        pair = sorted(better[:2], key=lambda remedy: isinstance(remedy, InitializeAgain))
        drawn_twice = {type(remedy) for remedy in pair} == {ReplaceActivations, InitializeAgain}
        return Combination(tuple(pair)) if len(pair) == 2 and not drawn_twice and chosen else None
