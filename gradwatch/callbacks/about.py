"""Tells of a fit what a reader of its report wants to know: settings of the run, and the classes of its modules."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.layers import plain_name
from gradwatch.reporting.text import listed, plural

_MOST_HPARAMS, _LONGEST = 40, 80  # hyperparameters, and characters of a value: a report is no dump of a config
_PACKAGES = ("torch", "lightning", "gradwatch")
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)  # a report is sent to others


def settings_of(trainer: Trainer, module: LightningModule, watcher: Watcher) -> dict[str, str]:
    """Return the settings of a run by name, as short texts."""
    sizes = [(param.numel(), param.requires_grad) for param in module.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    schedule = watcher.intake.schedule
    found = {
        "model": type(module).__name__,
        "parameters": f"{sum(size for size, _ in sizes):,}, of which {trained:,} are trained",
        "optimizer": ", ".join(map(_optimizer, trainer.optimizers)),
        "schedule": ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs),
        "batch size": _batch_size(trainer),
        "accumulated batches": str(trainer.accumulate_grad_batches) if trainer.accumulate_grad_batches != 1 else "",
        "gradient clip": _clip(trainer),
        "precision": str(trainer.precision),
        "devices": f"{plural(trainer.world_size, 'process')}".replace("processs", "processes")
        + f" on {type(trainer.accelerator).__name__.removesuffix('Accelerator')}",
        "length": _length(trainer),
        "measured steps": f"each of the first {schedule.dense_steps}, then every {schedule.every_n_steps}.",
        "not watched": listed(watcher.unwatched),
        "started": time.strftime("%Y-%m-%d %H:%M %z"),
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, _PACKAGES)]),
    }
    known = {name: text for name, text in found.items() if text}
    return known | {f"hparams: {name}": text for name, text in _hparams(module)}


def classes_around(module: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Return name -> class of the modules that hold these layers.

    Example:
        >>> classes_around(nn.Sequential(nn.ModuleDict({"a": nn.Linear(1, 1)})), ["0.a"])
        {'0': 'ModuleDict'}
    """
    parts = [layer.split(".") for layer in layers]
    around = {".".join(part[:depth]) for part in parts for depth in range(1, len(part))}
    found = {plain_name(name): type(each).__name__ for name, each in module.named_modules()}
    return {name: kind for name, kind in found.items() if name in around}


def _optimizer(optimizer: Any) -> str:
    plain = {k: v for k, v in optimizer.defaults.items() if isinstance(v, (bool, int, float, tuple)) and v is not False}
    return f"{type(optimizer).__name__}({', '.join(f'{name}={value}' for name, value in plain.items())})"[:200]


def _batch_size(trainer: Trainer) -> str:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    return str(size) if isinstance(size, int) else ""


def _clip(trainer: Trainer) -> str:
    algorithm = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm) or "norm"
    return f"{trainer.gradient_clip_val} by {algorithm}" if trainer.gradient_clip_val else ""


def _length(trainer: Trainer) -> str:
    limits = {"epoch": trainer.max_epochs or -1, "step": trainer.max_steps}
    return " or ".join(plural(count, noun) for noun, count in limits.items() if count > 0)


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} from a folder"


def _hparams(module: LightningModule) -> list[tuple[str, str]]:
    """Return the hyperparameters that are numbers or short texts and do not look like a secret."""
    given: Mapping[str, Any] = dict(getattr(module, "hparams", {}))
    plain = [(str(name), value) for name, value in given.items() if isinstance(value, (bool, int, float, str))]
    shown = [(name, str(value)) for name, value in plain if not _SECRET.search(name) and len(str(value)) <= _LONGEST]
    return shown[:_MOST_HPARAMS]
