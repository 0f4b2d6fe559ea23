"""A short training of a LightningModule, by a Trainer that writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.short_runs.loop import Nobody, Observer, batches
from gradwatch.short_runs.run import Run
from gradwatch.short_runs.sandbox import aside, copied, ignore, within

KEPT_OPTIONS = (
    "accumulate_grad_batches", "detect_anomaly", "gradient_clip_algorithm", "gradient_clip_val", "max_epochs",
    "max_steps", "precision", "reload_dataloaders_every_n_epochs",
)  # fmt: skip
"""What a short run takes over of a Trainer's settings: all else is about devices, files and validation."""

# They write files, draw, or wait for a metric of a validation that does not take place.
_REPORTERS = (
    Checkpoint, DeviceStatsMonitor, EarlyStopping, GradientMonitor, LearningRateMonitor, ModelSummary, ProgressBar,
)  # fmt: skip


class _StopAfter(Callback):
    """Ends the fit after so many steps; schedulers still plan with the run's own length.

    The Trainer's ``max_steps`` would not do: a schedule over the run's length would be squeezed into a few steps.
    """

    def __init__(self, monitor: GradientMonitor, steps: int) -> None:
        self._monitor, self._steps, self._batches = monitor, steps, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a scheduler that waits for a metric of the validation wait on."""
        for config in trainer.lr_scheduler_configs:
            config.strict = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop, also where batch after batch brings no step."""
        self._batches += 1
        history = self._monitor.history
        done = bool(history) and history[-1].step + 1 >= self._steps
        trainer.should_stop |= done or self._batches >= 10 * self._steps * trainer.accumulate_grad_batches


class _Observing(Callback):
    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._observer.listen(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._observer.before_backward(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._observer.after_backward(pl_module)


class _Again:
    """One batch, again and again; an iterable of its own, as Lightning takes a list for several loaders."""

    def __init__(self, batch: Any, count: int) -> None:
        self._batch, self._count = batch, count

    def __iter__(self) -> Iterator[Any]:
        return islice(batches(self._batch), self._count)

    def __len__(self) -> int:
        return self._count


def train_with_a_trainer(
    module: LightningModule,
    data: Any,
    steps: int = 20,
    *,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    observer: Observer | None = None,
) -> Run:
    """Train a copy of a LightningModule on a CPU for a few steps, every one of them measured. No file is written.

    Args:
        module: stays as it is.
        data: a LightningDataModule, a DataLoader, a batch that every step gets, or None where the module has loaders.
        steps: how many.
        options: of the run's own Trainer; taken over are those in ``KEPT_OPTIONS``.
        callbacks: of the run; those that only report are left out.
        observer: looks on.

    Raises:
        TypeError: when the module can't be copied.
    """
    monitor = GradientMonitor(
        every_n_steps=1, detectors=within(steps), on_finding=ignore, history_size=max(steps, 2), summary=False
    )
    error = None
    with aside(), TemporaryDirectory() as folder:
        trained = copied(module)
        watching = [*map(copied, training_only(callbacks)), _Observing(observer or Nobody()), monitor]
        watching.append(_StopAfter(monitor, steps))
        try:
            trainer = _make_trainer(options or {}, steps, watching, folder)
            silence(trained)
            trainer.fit(trained, **_loaders(data, steps * trainer.accumulate_grad_batches))
        except Exception as raised:  # a training that crashes is a result too
            error = raised
        found = tuple(monitor.findings), tuple(monitor.diagnosis())
    return Run(type(module).__name__, tuple(monitor.history), *found, error)


def training_only(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks that take part in the training.

    Example:
        >>> from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
        >>> kept = training_only([ModelCheckpoint(), GradientAccumulationScheduler({0: 2})])
        >>> [type(callback).__name__ for callback in kept]
        ['GradientAccumulationScheduler']
    """
    return [callback for callback in callbacks if not isinstance(callback, _REPORTERS)]


def _make_trainer(options: Mapping[str, Any], steps: int, callbacks: list[Callback], folder: str) -> Trainer:
    kept = {name: options[name] for name in KEPT_OPTIONS if options.get(name) is not None}
    kept["max_epochs"] = _at_least(kept.get("max_epochs", 1000), steps)  # 1000 is Lightning's own default
    kept["max_steps"] = _at_least(kept.get("max_steps", -1), steps)
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=DummyLogger(),  # a training_step may use self.logger
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **kept,
    )


def _at_least(limit: int, steps: int) -> int:
    return limit if limit == -1 else max(limit, steps)


def silence(module: LightningModule) -> None:
    """Leave out the callbacks of its own that only report."""
    own = module.configure_callbacks

    def configure_callbacks() -> list[Callback]:
        given = own()
        return training_only([given] if isinstance(given, Callback) else given)

    module.configure_callbacks = configure_callbacks  # type: ignore[method-assign]  # of this copy only


def _loaders(data: Any, count: int) -> dict[str, Any]:
    if data is None:
        return {}
    if isinstance(data, LightningDataModule):
        return {"datamodule": data}
    return {"train_dataloaders": data if isinstance(data, DataLoader) else _Again(data, count + 1)}
