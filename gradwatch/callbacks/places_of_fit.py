"""Tells what a Trainer writes of a run, and where."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from gradwatch.callbacks.trainer_checks import has_class_named
from gradwatch.pipeline.about import hparams_shown, length_in_words, processes, settings_of_run
from gradwatch.pipeline.reports import Places
from gradwatch.pipeline.run_files import Wanted
from gradwatch.pipeline.watcher import Watcher
from gradwatch.reporting.loggers import sink_of

_FOLDER_OF_NO_LOGGER = "gradwatch_logs"  # in the Trainer's folder
_PACKAGES = ("torch", "lightning", "gradwatch")


def places_of(trainer: Trainer, module: LightningModule, wanted: Wanted, watcher: Watcher, *, resumes: bool) -> Places:
    """Return the places that a fit writes to.

    Args:
        trainer: whose loggers are written to.
        module: that is trained.
        wanted: the files and texts that are asked for.
        watcher: of the fit; switches off a place that can't be found.
        resumes: the run goes on where an earlier one stopped, and so does its record.
    """

    def find() -> str | Path | None:
        return wanted.record_in(run_folder(trainer), resumes=resumes)

    record = watcher.containment.run("the place of the record", find)
    return Places(
        record=record,
        report=wanted.report_beside(record, trainer.default_root_dir),
        summary=wanted.summary,
        sinks={part: partial(sink_of, logger) for part, logger in _loggers(trainer).items()},
        settings=partial(settings_of, trainer, module),
        tell=rank_zero_info,
    )


def run_folder(trainer: Trainer) -> str:
    """Return the folder of the run, which is that of its checkpoints; empty where a Trainer writes nothing.

    It follows the first logger, as Lightning does. A logger that keeps nothing on this machine, such as MLflow's with a
    server, has one in the Trainer's folder. It may be remote (``s3://...``).
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return ""
    if not trainer.loggers:
        return f"{trainer.default_root_dir}/{_FOLDER_OF_NO_LOGGER}"
    logger: Any = trainer.loggers[0]
    if has_class_named(logger, "DummyLogger"):
        return ""
    if has_class_named(logger, "TensorBoardLogger") or has_class_named(logger, "CSVLogger"):
        return str(logger.log_dir)
    version = logger.version
    named = version if isinstance(version, str) else f"version_{version}"
    return os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), named)


def _loggers(trainer: Trainer) -> dict[str, Any]:
    """Return the loggers by their names in warnings."""
    loggers: list[Any] = trainer.loggers
    boards = [logger for logger in loggers if has_class_named(logger, "TensorBoardLogger")]
    others = [logger for logger in loggers if logger not in boards]
    named = {f"TensorBoard in {logger.log_dir}": logger for logger in boards}
    return named | {f"logger {i} {type(logger).__name__}": logger for i, logger in enumerate(others)}


def settings_of(trainer: Trainer, module: LightningModule, watcher: Watcher) -> dict[str, str]:
    """Return the settings of a run by name, as short texts."""
    own = {
        "schedule": ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs),
        "batch size": _batch_size(trainer),
        "accumulated batches": str(trainer.accumulate_grad_batches) if trainer.accumulate_grad_batches != 1 else "",
        "gradient clip": _clip(trainer),
        "precision": str(trainer.precision),
        "devices": processes(trainer.world_size, type(trainer.accelerator).__name__.removesuffix("Accelerator")),
        "length": length_in_words(trainer.max_epochs or -1, trainer.max_steps),
    }
    found = settings_of_run(module, trainer.optimizers, watcher, own, _PACKAGES)
    return found | hparams_shown(dict(getattr(module, "hparams", {})))


def _batch_size(trainer: Trainer) -> str:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    return str(size) if isinstance(size, int) else ""


def _clip(trainer: Trainer) -> str:
    algorithm = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm) or "norm"
    return f"{trainer.gradient_clip_val} by {algorithm}" if trainer.gradient_clip_val else ""
