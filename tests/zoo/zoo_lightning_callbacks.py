"""Lightning's callbacks, and a few of people's own, beside the watching ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as lightning
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader
from zoo import WIDTH, Expect, Net, Run, fit, has_columns
from zoo_trainers import FIRST, Usual


def beside(name: str, make: Any, expect: Expect | None = FIRST, skip: str = "", **settings: Any) -> None:
    """A fit of two epochs with the callback that a function of the run makes."""

    def train(run: Run) -> None:
        given = {key: value(run) if callable(value) else value for key, value in settings.items()}
        run.trainer(make(run), **{"max_epochs": 2, **given}).fit(run.keep(Usual(run)))

    train.__name__ = name
    fit(expect=expect, skip=skip)(train)


def checkpoints(run: Run, **options: Any) -> Callback:
    return lightning.ModelCheckpoint(run.folder, save_top_k=-1, **options)


def logged(run: Run) -> CSVLogger:
    return CSVLogger(run.folder)


def averages(run: Run) -> Any:
    return lightning.WeightAveraging(device="cpu")


def moving_averages(run: Run) -> Any:
    return lightning.EMAWeightAveraging(decay=0.9)


NO_AVERAGES = "" if hasattr(lightning, "WeightAveraging") else "this Lightning has no WeightAveraging"
NO_EMA = "" if hasattr(lightning, "EMAWeightAveraging") else "this Lightning has no EMAWeightAveraging"

beside("weights_averaged", averages, skip=NO_AVERAGES)
beside("weights_averaged_exponentially", moving_averages, skip=NO_EMA)
beside("stochastic_weight_averaging", lambda run: lightning.StochasticWeightAveraging(0.01, 1, 1), max_epochs=3)
beside("accumulation_by_a_schedule", lambda run: lightning.GradientAccumulationScheduler({0: 1, 1: 4}))
beside("checkpoint_at_every_step", lambda run: checkpoints(run, every_n_train_steps=1), enable_checkpointing=True)
beside("checkpoint_of_weights_alone", lambda run: checkpoints(run, save_weights_only=True), enable_checkpointing=True)
beside("checkpoint_by_our_total", lambda run: checkpoints(run, monitor="val_loss"), enable_checkpointing=True)
beside("stopped_early", lambda run: lightning.EarlyStopping("val_loss", patience=0, min_delta=9.0))
beside("stopped_early_in_training", lambda run: lightning.EarlyStopping("train_loss_step", patience=1, min_delta=9.0))
beside("device_statistics", lambda run: lightning.DeviceStatsMonitor(cpu_stats=False), logger=logged)
beside("rates_logged", lambda run: lightning.LearningRateMonitor("step"), logger=logged)
beside("rich_progress_bar", lambda run: lightning.RichProgressBar(), enable_progress_bar=True)
beside("rich_summary", lambda run: lightning.RichModelSummary(), enable_model_summary=True)
beside("timer", lambda run: lightning.Timer("00:01:00:00", interval="step"))
beside("functions_as_callbacks", lambda run: lightning.LambdaCallback(on_train_batch_end=lambda *_: None))
beside("checkpoint_on_an_exception", lambda run: lightning.OnExceptionCheckpoint(run.folder), enable_checkpointing=True)
beside(
    "pruning_at_each_epoch",
    lambda run: lightning.ModelPruning("l1_unstructured", amount=0.2, use_global_unstructured=True),
)


def throughput(run: Run) -> Callback:
    return lightning.ThroughputMonitor(lambda batch: 1, window_size=2)


beside("throughput", throughput, logger=logged)


class OfBackbone(Usual):
    """Has the part that its finetuning freezes."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.backbone, self.net = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Any) -> Any:
        return self.net(self.backbone(x))

    def configure_optimizers(self) -> Any:
        return self.run.keep(torch.optim.SGD(self.net.parameters(), lr=0.05))


@fit(expect=has_columns("grad_norm", layer="net"))
def backbone_thawed_in_mid_run(run: Run) -> None:
    thaws = lightning.BackboneFinetuning(1, verbose=False, backbone_initial_lr=0.01)
    run.trainer(thaws, max_epochs=3).fit(run.keep(OfBackbone(run)))


@fit(error="RuntimeError: out of luck")
def checkpoint_on_an_exception_that_comes(run: Run) -> None:
    class Fails(Usual):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("out of luck")

    keeps = lightning.OnExceptionCheckpoint(run.folder)
    run.trainer(keeps, max_epochs=1, enable_checkpointing=True).fit(run.keep(Fails(run)))


class Tuned(Net):
    """Has a rate and a batch size that can be tuned."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.lr, self.batch_size = 0.1, 2

    def configure_optimizers(self) -> Any:
        return self.run.keep(torch.optim.SGD(self.parameters(), lr=self.lr))

    def train_dataloader(self) -> Any:
        return DataLoader(range(16), batch_size=self.batch_size)


@fit()
def rate_found_before_the_fit(run: Run) -> None:
    model, trainer = run.keep(Tuned(run)), run.trainer(max_epochs=1)
    Tuner(trainer).lr_find(model, num_training=6, update_attr=True)
    trainer.fit(model)


@fit()
def rate_found_by_a_callback(run: Run) -> None:
    run.trainer(lightning.LearningRateFinder(num_training_steps=6), max_epochs=1).fit(run.keep(Tuned(run)))


@fit()
def batch_size_found_by_a_callback(run: Run) -> None:
    run.trainer(lightning.BatchSizeFinder(max_trials=2, steps_per_trial=1), max_epochs=1).fit(run.keep(Tuned(run)))


class CopiesTheTrainer(Callback):
    """Copies and pickles the other callbacks in each batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for callback in trainer.callbacks:
            copy.copy(callback), copy.deepcopy(callback.state_dict())
        pickle.dumps([callback.state_dict() for callback in trainer.callbacks])


beside("callbacks_copied_in_each_batch", lambda run: CopiesTheTrainer())


class EndsTheEpoch(Callback):
    """Ends the epoch after its second batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 else None


beside("epoch_ended_by_a_callback", lambda run: EndsTheEpoch())


class SwapsCallbacks(Callback):
    """Adds a callback in the middle of a fit."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if len(trainer.callbacks) < 5:
            trainer.callbacks.append(lightning.LambdaCallback())


beside("callbacks_added_in_mid_fit", lambda run: SwapsCallbacks())


class ExchangesTheOptimizer(Callback):
    """Gives the Trainer a new optimizer in the middle of a fit."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.strategy.optimizers = [pl_module.run.keep(torch.optim.Adam(pl_module.parameters(), lr=0.01))]


beside("optimizer_exchanged_in_mid_fit", lambda run: ExchangesTheOptimizer())


class ExchangesTheHead(Callback):
    """Puts a new last layer into the model in the middle of a fit."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.net[4] = nn.Linear(WIDTH, 3)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.net[4].parameters())})


@fit(expect=FIRST)
def head_exchanged_in_mid_fit(run: Run) -> None:
    run.trainer(ExchangesTheHead(), max_epochs=2).fit(run.keep(Net(run)))


@fit()
def spikes_detected(run: Run) -> None:
    from lightning.pytorch.callbacks.spike import SpikeDetection

    spikes = SpikeDetection(warmup=1, window=2, exclude_batches_path=run.folder)
    run.trainer(spikes, max_epochs=2).fit(run.keep(Usual(run)))
