"""Training of one run in its process, and its result."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from gradwatch import GradientMonitor, Snapshot
from gradwatch.examples.baseline import Baseline
from gradwatch.examples.comparison.results import Result
from gradwatch.examples.comparison.tasks import Task
from gradwatch.examples.data import ImageData
from gradwatch.examples.run import make_trainer


class _Curves(Callback):
    """Records the metrics of each epoch, and sends the number of epochs done."""

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            self.values.setdefault(name, []).append(float(trainer.callback_metrics[name]))
        self._send(trainer.current_epoch + 1)


def train(task: Task, send: Callable[[int], None]) -> None:
    """Train, and write a result or an error to the task's folder, and the output to a file there.

    Args:
        task: the task to train.
        send: called with the number of epochs done, after each.
    """
    torch.set_num_threads(1)
    task.folder.mkdir(parents=True, exist_ok=True)
    _redirect_output(task.output)
    try:
        result = measure(task, send)
    except Exception as error:
        traceback.print_exc()
        result = task.result(f"{type(error).__name__}: {error}")
    result.save(task.folder)


def measure(task: Task, send: Callable[[int], None] = lambda epochs: None) -> Result:
    """Train in this process, write the logs to the task's folder, and return the result."""
    started = time.monotonic()
    data = ImageData(task.dataset, task.data_dir, task.batch_size, task.seed)
    data.setup()
    seed_everything(task.seed, verbose=False)
    model = task.run.build(data.in_features, data.num_classes)
    monitor, curves = GradientMonitor(), _Curves(send)
    logger = TensorBoardLogger(task.folder, name="", version="", default_hp_metric=False)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    trainer = make_trainer(model, task.epochs, task.fast, logger=logger, callbacks=[monitor, curves], **quiet)
    trainer.fit(model, data)
    accuracy = trainer.test(model, data, verbose=False)[0]["test_accuracy"]
    layers, start, end = first_and_last(monitor.history)
    result = replace(
        task.result(),
        seconds=time.monotonic() - started,
        test_accuracy=accuracy,
        steps_per_epoch=int(trainer.num_training_batches),
        curves=curves.values,
        layers=layers,
        start=start,
        end=end,
        findings=tuple(monitor.findings),
    )
    log_hyperparameters(logger, task, model, result)
    return result


def first_and_last(history: list[Snapshot]) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Return the layers with weights, and their gradient norms at the first and the last measured step."""
    first, last = history[0], history[-1]
    learns = np.any([snapshot.weight_norm >= 0 for snapshot in history], axis=0)  # a frozen layer has no norm
    chosen = [i for i, kind in enumerate(first.kinds) if learns[i] and "Norm" not in kind]
    start, end = (tuple(snapshot.grad_norm[chosen].tolist()) for snapshot in (first, last))
    return tuple(first.layers[i] for i in chosen), start, end


def log_hyperparameters(logger: TensorBoardLogger, task: Task, model: Baseline, result: Result) -> None:
    """Log settings and final metrics for TensorBoard's HParams tab, which needs the same settings in all runs."""
    arguments = ", ".join(f"{name}={value}" for name, value in task.run.settings.items())
    settings = {"remedy": result.name, "family": result.family, "arguments": arguments or "defaults"}
    settings |= {"lr": model.hparams.lr, "seed": task.seed, "epochs": task.epochs}
    metrics = {
        "result/test_accuracy": result.test_accuracy,
        "result/train_loss": result.train_loss,
        "result/first_layer_grad_norm_start": result.start[0],
        "result/first_layer_grad_norm_end": result.end[0],
        "result/first_to_last_start": result.ratio_start,
        "result/first_to_last_end": result.ratio_end,
    }
    logger.log_hyperparams(settings, {name: value for name, value in metrics.items() if math.isfinite(value)})
    logger.finalize("success")


def _redirect_output(path: Path) -> None:
    """Redirect the output of Python and of native code, so that the trace of a crash is in the file too."""
    sys.stdout.flush()
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
