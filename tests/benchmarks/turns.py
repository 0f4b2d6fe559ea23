"""Fits that take turns: one at a time, a few steps each, so a disturbance of the machine hits all alike."""

from __future__ import annotations

import tempfile
import time

from greenlet import getcurrent, greenlet
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from variants import DENSE, Variant
from workloads import Workload

Cost = tuple[float, float]  # seconds, and seconds of all processors


class CannotRun(Exception):
    """The reason for which a variant has no figure on a workload."""


class Baton(Callback):
    """Pauses the fit every few steps after the dense first ones, until its next turn."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._begin: Cost | None = None

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        late = trainer.global_step - DENSE - 1
        if late < 0 or late % self._steps:
            return
        trainer.loggers[0].experiment.flush()  # the writer's remaining work is a cost of this fit too
        cost = (0.0, 0.0)
        if self._begin is not None:
            cost = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        getcurrent().parent.switch(cost)
        self._begin = time.perf_counter(), time.process_time()


class Fit:
    """A fit that runs only during its turns.

    It is a greenlet, not a thread: outside the main thread OpenMP uses only one processor.

    Args:
        workload: to train.
        variant: callback of the fit.
        steps: of a turn.
        turns: number of turns.

    Raises:
        CannotRun: when the variant fails on this workload.
    """

    def __init__(self, workload: Workload, variant: Variant, steps: int, turns: int) -> None:
        self._workload, self._variant, self._steps = workload, variant, steps
        self._last = DENSE + 1 + steps * turns
        self._fit = greenlet(self._run)
        self._fit.switch()

    def _run(self) -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            callback = self._variant.callback(folder)
            trainer = Trainer(
                accelerator="cpu", max_steps=self._last + 1, logger=TensorBoardLogger(folder),
                callbacks=[Baton(self._steps), *filter(None, [callback])],
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            try:
                trainer.fit(self._workload.module(), self._workload.loader())
            except RuntimeError as error:
                raise CannotRun(f"cannot run: {str(error).splitlines()[0]}") from error

    def turn(self) -> Cost:
        """Run the next steps and return their cost."""
        cost: Cost = self._fit.switch()
        return cost

    def close(self) -> None:
        """Run the fit to its end, after the last turn."""
        self._fit.switch()
