"""Fits that take turns: one at a time, a few steps each, so a disturbance of the machine hits all alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any
from unittest.mock import patch

from greenlet import getcurrent, greenlet
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from variants import Variant
from workloads import Workload

from gradwatch.pipeline import reports
from gradwatch.reporting import record_files

Cost = tuple[float, float]  # seconds, and seconds of all processors


class CannotRun(Exception):
    """The reason for which a variant has no figure on a workload."""


class Baton(Callback):
    """Pauses the fit before step ``first`` and every few steps from then on, until its next turn."""

    def __init__(self, first: int, every: int) -> None:
        self._first, self._every = first, every

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        late = trainer.global_step - self._first
        if late >= 0 and late % self._every == 0:
            trainer.loggers[0].experiment.flush()  # the writer's remaining work is a cost of this fit too
            _pause()


def _pause() -> None:
    """Return to the fit's :meth:`Fit.turn`, until the next one."""
    getcurrent().parent.switch()


class OwnClock:
    """The module ``time`` with a ``monotonic`` that stands still between the turns of a fit.

    The monitor gives 1 % of the time since its start to pictures. Beside two other fits that would be 3 % of its own.
    """

    def __init__(self) -> None:
        self._away = 0.0
        self._left = time.monotonic()

    def monotonic(self) -> float:
        return time.monotonic() - self._away

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let gradwatch read this clock."""
        self._away += time.monotonic() - self._left
        with patch.object(reports, "time", self), patch.object(record_files, "time", self):
            yield
        self._left = time.monotonic()


class Fit:
    """A fit that runs only during its turns, and prints nothing.

    It is a greenlet, not a thread: outside the main thread OpenMP uses only one processor. The first turn begins with
    the call of ``trainer.fit``, and the last one ends when that returns.

    Args:
        workload: to train.
        variant: callback of the fit.
        baton: ends its turns.
        steps: of the fit.

    Attributes:
        is_over: ``trainer.fit`` has returned.
    """

    def __init__(self, workload: Workload, variant: Variant, baton: Baton, steps: int) -> None:
        self.is_over = False
        self._clock, self._printed = OwnClock(), StringIO()
        self._fit = greenlet(partial(self._run, workload, variant, baton, steps))
        self.turn()

    def _run(self, workload: Workload, variant: Variant, baton: Baton, steps: int) -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            trainer = Trainer(
                accelerator="cpu", max_steps=steps, logger=TensorBoardLogger(folder),
                callbacks=[baton, *filter(None, [variant.callback(folder)])],
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            module, loader = workload.module(), workload.loader()
            _pause()
            try:
                trainer.fit(module, loader)
            except RuntimeError as error:
                raise CannotRun(f"cannot run: {str(error).splitlines()[0]}") from error
            self.is_over = True
            _pause()

    def turn(self) -> Cost:
        """Run the next steps and return their cost.

        Raises:
            CannotRun: when the variant fails on this workload.
        """
        with redirect_stdout(self._printed), redirect_stderr(self._printed), self._clock.running():
            begin, processors = time.perf_counter(), time.process_time()
            self._fit.switch()
            return time.perf_counter() - begin, time.process_time() - processors

    def close(self) -> None:
        """Run the fit to its end, after the last turn, and remove its files."""
        while not self._fit.dead:
            self.turn()
