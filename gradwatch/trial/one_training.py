"""One short training of a set-up, on the CPU, silent, with nothing written to disk."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.callbacks.transform import GradientTransform
from gradwatch.records import Finding, Snapshot
from gradwatch.remedies.remedy import Setup, copy_of
from gradwatch.remedies.scaling import LOSS_IN_UNIT
from gradwatch.short_runs.batches import with_same_batches
from gradwatch.short_runs.optimizers_of_module import schedulers_in
from gradwatch.short_runs.sandbox import kept_randomness
from gradwatch.trial.result import TRAIN_LOSS

_QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "max_epochs": -1,
}
_NEVER = 10**9  # epochs


class Interrupted(KeyboardInterrupt):
    """Ctrl+C during a training."""


@dataclass(frozen=True)
class Measured:
    """What a training came to.

    Attributes:
        metrics: logged in validation at the end.
        loss: mean training loss over the last tenth of the steps.
        findings, history, diagnoses: of the monitor.
        error: the exception that ended it; empty where none did.
        interrupted: whether it was broken off.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    loss: float = math.nan
    findings: Sequence[Finding] = ()
    history: Sequence[Snapshot] = ()
    diagnoses: Sequence[Any] = ()
    error: str = ""
    interrupted: bool = False

    def value_of(self, metric: str) -> float:
        """The metric's value; NaN where it was not logged, or the training did not end well."""
        if self.error or self.interrupted:
            return math.nan
        return self.loss if metric == TRAIN_LOSS else self.metrics.get(metric, math.nan)


class OneTraining:
    """A set-up that is trained once; its module is trained in place.

    Args:
        setup: a copy.
        data: a data module, or the loader of the training batches.
        steps: optimizer steps.
        seed: of random numbers and batches.
    """

    def __init__(self, setup: Setup, data: Any, steps: int, seed: int) -> None:
        self._setup, self._steps, self._seed = setup, steps, seed
        self._data = with_same_batches(data, seed)
        self._monitor = GradientMonitor(every_n_steps=max(steps // 20, 1), summary=False, on_finding=_say_nothing)

    def run(self, on_step: Callable[[int], None]) -> Measured:
        """Train, then validate."""
        losses, trainer = _Losses(on_step), None
        error, interrupted, metrics = "", False, {}
        with _silence(), kept_randomness(self._seed):
            try:
                trainer = self._trainer(losses)
                self._fit(trainer)
                metrics = self._validate(trainer)
            except (KeyboardInterrupt, SystemExit):  # a Trainer makes the second of the first
                interrupted = True
            except Exception as problem:
                error = f"{type(problem).__name__}: {problem}"
        monitor = self._monitor
        found = (tuple(monitor.findings), tuple(monitor.history), tuple(monitor.diagnosis()))
        return Measured(metrics, losses.at_the_end(), *found, error, interrupted)

    def _trainer(self, losses: _Losses) -> Trainer:
        options = {**self._setup.options}
        callbacks: list[Any] = [self._monitor, losses, *options.pop("callbacks", ())]
        if self._setup.transforms:
            callbacks.append(GradientTransform([*self._setup.transforms]))
        epochs = 1 if self._needs_validation() else _NEVER
        options |= {**_QUIET, "max_steps": self._steps, "check_val_every_n_epoch": epochs}
        return Trainer(callbacks=callbacks, **options)

    def _fit(self, trainer: Trainer) -> None:
        if callable(getattr(self._data, "train_dataloader", None)):
            trainer.fit(self._module, datamodule=self._data)
        else:
            trainer.fit(self._module, self._data)

    def _validate(self, trainer: Trainer) -> dict[str, float]:
        has_data = is_overridden("val_dataloader", self._data) if hasattr(self._data, "val_dataloader") else False
        if not has_data or not is_overridden("validation_step", self._module):
            return {}
        trainer.validate(self._module, datamodule=self._data, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    @property
    def _module(self) -> LightningModule:
        module: Any = self._setup.module
        return module  # type: ignore[no-any-return] # that it is a LightningModule was seen by its methods

    def _needs_validation(self) -> bool:
        """Whether a scheduler waits for a metric of each epoch."""
        module: Any = copy_of(self._module)
        try:
            return any(isinstance(found, ReduceLROnPlateau) for found in schedulers_in(module.configure_optimizers()))
        except Exception:  # it may want to be in a Trainer
            return False


class _Losses(Callback):
    """Keeps the loss of every batch, and tells how many steps are done."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step, self._steps = on_step, 0
        self._values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        loss = found.get(LOSS_IN_UNIT, found.get("loss"))
        if isinstance(loss, Tensor):
            self._values.append(loss.detach().float().mean())
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._on_step(self._steps)

    def at_the_end(self) -> float:
        last = self._values[-max(len(self._values) // 10, 1) :]
        return float(np.mean([value.item() for value in last])) if last else math.nan


def _say_nothing(finding: Finding) -> None:
    """What a finding does in a trial: it is in the row."""


@contextmanager
def _silence() -> Iterator[None]:
    """No log lines or warnings; and Ctrl+C works afterwards, which a Trainer that was interrupted switches off."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
