"""A short training of a LightningModule, by a Trainer that writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradwatch.callbacks.added import AddedMonitor
from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.callbacks.transform import GradientTransform
from gradwatch.places import raised_at
from gradwatch.short_runs.batches import RepeatedBatch, SameBatches
from gradwatch.short_runs.loop import Observer, detectors_for, ignore_finding
from gradwatch.short_runs.run import Interrupted, Run, SetupFault
from gradwatch.short_runs.sandbox import copy_without_trainer, isolated
from gradwatch.short_runs.wrap_method import wrap_method

KEPT_OPTIONS = (
    "accumulate_grad_batches", "detect_anomaly", "gradient_clip_algorithm", "gradient_clip_val",
    "limit_train_batches", "max_epochs", "max_steps", "precision", "reload_dataloaders_every_n_epochs",
)  # fmt: skip
"""The settings of a Trainer that a short run takes over: all others are about devices, files and validation."""

# They write files, draw, or wait for a metric of a validation that does not take place.
_REPORTERS = (
    Checkpoint, DeviceStatsMonitor, EarlyStopping, GradientMonitor, LearningRateMonitor, ModelSummary, ProgressBar,
)  # fmt: skip
_NEVER = 10**9

AfterBatch = Callable[[int, Any], object]
"""Called after each batch with the optimizer steps done so far and what ``training_step`` returned."""


def train_with_a_trainer(
    module: LightningModule,
    data: Any,
    steps: int = 20,
    *,
    options: Mapping[str, Any] | None = None,
    transforms: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    observer: Observer | None = None,
    after_batch: AfterBatch | None = None,
    seed: int = 0,
    every_n_steps: int = 1,
    validate: bool = False,
) -> Run:
    """Train a copy of a LightningModule on a CPU for the first steps of its run. No file is written.

    Schedules keep the run's own length: one that plans with ``max_epochs``, ``max_steps`` or
    ``trainer.estimated_stepping_batches`` is as far after 20 steps as it will be in the run. So a cosine over a long
    run has hardly begun, and the short run says nothing about its end. Without these options the run has Lightning's
    1000 epochs. A run that would end sooner goes on at the learning rates of its end.

    Args:
        module: is not changed.
        data: a LightningDataModule, a DataLoader, a batch that every step gets, or None where the module has loaders.
        steps: how many batches with an optimizer step.
        options: of the run's own Trainer; taken over are those in ``KEPT_OPTIONS``.
        transforms: gradient transforms, run before each optimizer step.
        callbacks: of the run; those that only report are left out.
        observer: looks at the copy.
        after_batch: called after each batch.
        seed: of the random numbers.
        every_n_steps: measure every so many steps, and each of the first 20.
        validate: validate at the end, and after each epoch where a ReduceLROnPlateau needs it.

    Raises:
        TypeError: when the module can't be copied.
        Interrupted: by Ctrl+C, with the run up to there.
    """
    monitor = GradientMonitor(
        every_n_steps=every_n_steps,
        detectors=detectors_for(steps),
        on_finding=ignore_finding,
        history_size=max(steps, 2),
        record_path=False,
        summary=False,
    )
    metrics: dict[str, float] = {}
    error: Exception | None = None
    interrupt: BaseException | None = None
    with isolated(seed), TemporaryDirectory() as folder:
        model = copy_without_trainer(module)
        _drop_own_reporters(model)
        # The monitor reads the gradients before a callback changes them, and has counted the step before the fit ends.
        watching: list[Callback] = [_Observing(observer)] if observer is not None else []
        watching += [monitor, *map(copy_without_trainer, training_only(callbacks))]
        watching += [GradientTransform([*map(copy_without_trainer, transforms)])] if transforms else []
        watching.append(_FirstSteps(monitor, steps, after_batch))
        try:
            _require_parts(model)
            trainer = _make_trainer(options or {}, watching, folder, validate)
            trainer.fit(model, **_loaders(data, steps * trainer.accumulate_grad_batches))
            _require_steps(trainer, monitor, type(module).__name__)
            metrics = _validated(trainer, model, data) if validate else {}
        except Exception as raised:  # a training that crashes is a result too
            error = raised
        except (KeyboardInterrupt, SystemExit) as raised:  # a Trainer makes the second of the first
            interrupt = raised
        found = tuple(monitor.findings), tuple(monitor.diagnosis())
    where = "" if error is None else str(raised_at(error, model))
    run = Run(type(module).__name__, tuple(monitor.history), *found, error, metrics, place=where)
    if interrupt is not None:
        raise Interrupted(run) from interrupt
    return run


def _require_parts(module: LightningModule) -> None:
    """Raise a SetupFault for a module that lacks what every training needs; look at its optimizers when it has them."""
    name = type(module).__name__
    if not is_overridden("training_step", module):
        raise SetupFault(f"{name} has no training_step(); expected one that returns the loss of a batch")
    if not is_overridden("configure_optimizers", module):
        raise SetupFault(f"{name} has no configure_optimizers(); expected one that returns an optimizer")
    if module.automatic_optimization:
        wrap_method(module, "configure_optimizers", _RequireOptimizer(name))


class _RequireOptimizer:
    """Refuses a ``configure_optimizers`` that returns nothing: Lightning would train without any step."""

    def __init__(self, name: str) -> None:
        self._name = name

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = method(*args, **kwargs)
        if found is None or found in ([], ()):
            raise SetupFault(f"configure_optimizers() of {self._name} returned {found!r}; expected an optimizer")
        return found


def _require_steps(trainer: Trainer, monitor: GradientMonitor, name: str) -> None:
    """Raise a SetupFault where a fit came to its end without a step, and say why."""
    if trainer.num_training_batches == 0:
        raise SetupFault("the training loader gives no batch; expected data, at least a batch of it with drop_last")
    if not monitor.history and not monitor.out_of_service:
        raise SetupFault(f"no optimizer step was made; expected a training_step() of {name} that returns a loss")


class _FirstSteps(Callback):
    """Ends the fit after so many steps, and leaves the run's own length to its schedules.

    The Trainer's ``max_steps`` would not do: a schedule over the run's length would be squeezed into a few steps.
    """

    def __init__(self, monitor: GradientMonitor, steps: int, after_batch: AfterBatch | None) -> None:
        self._monitor, self._steps, self._after_batch = monitor, steps, after_batch
        self._batches = self._batches_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a scheduler skip its step where its metric is missing; validate only for a scheduler that needs it."""
        for config in trainer.lr_scheduler_configs:
            config.strict = False
        if not any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            trainer.check_val_every_n_epoch = _NEVER

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Stop, also where batch after batch brings no step."""
        self._batches += 1
        done = self._monitor.steps
        if self._after_batch is not None:
            self._after_batch(done, outputs)
        trainer.should_stop |= done >= self._steps
        trainer.should_stop |= self._batches >= 10 * self._steps * trainer.accumulate_grad_batches
        if 0 < trainer.max_steps <= trainer.global_step:
            self._go_on(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on after the run's last epoch, unless the data can be read only once."""
        trainer.should_stop |= self._batches == self._batches_before
        self._batches_before = self._batches
        if 0 < (trainer.max_epochs or 0) <= trainer.current_epoch + 1:
            self._go_on(trainer)

    @staticmethod
    def _go_on(trainer: Trainer) -> None:
        """Lift the run's own limits and hold the learning rates: a one-cycle schedule raises past its end."""
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1
        for config in trainer.lr_scheduler_configs:
            config.frequency = _NEVER


class _Observing(Callback):
    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._observer.listen(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._observer.before_backward(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._observer.after_backward(pl_module)


def training_only(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks that take part in the training.

    Example:
        >>> from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
        >>> kept = training_only([ModelCheckpoint(), GradientAccumulationScheduler({0: 2})])
        >>> [type(callback).__name__ for callback in kept]
        ['GradientAccumulationScheduler']
    """
    return [callback for callback in callbacks if not isinstance(callback, _REPORTERS)]


def _drop_own_reporters(module: LightningModule) -> None:
    own = module.configure_callbacks

    def configure_callbacks() -> list[Callback]:
        given = own()
        return training_only([given] if isinstance(given, Callback) else given)

    module.configure_callbacks = configure_callbacks  # type: ignore[method-assign]  # of this copy only


def _make_trainer(options: Mapping[str, Any], callbacks: list[Callback], folder: str, validate: bool) -> Trainer:
    kept = {name: options[name] for name in KEPT_OPTIONS if options.get(name) is not None}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=DummyLogger(),  # a training_step may use self.logger
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **kept,
    )
    # A short run has a monitor, and is no training of the user's, which the environment or pytest would watch.
    added: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [each for each in added if not isinstance(each, AddedMonitor)]  # type: ignore[attr-defined]
    return trainer


def _has_loaders(data: Any) -> bool:
    return callable(getattr(data, "train_dataloader", None))


def _loaders(data: Any, batches: int) -> dict[str, Any]:
    if data is None:
        return {}
    if _has_loaders(data):
        return {"datamodule": data}
    # One batch more than is needed: the short run ends within an epoch, as it does with a large data set.
    is_loader = isinstance(data, (DataLoader, SameBatches))
    return {"train_dataloaders": data if is_loader else RepeatedBatch(data, batches + 1)}


def _validated(trainer: Trainer, module: LightningModule, data: Any) -> dict[str, float]:
    if not (_has_loaders(data) and is_overridden("val_dataloader", data) and is_overridden("validation_step", module)):
        return {}
    trainer.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
