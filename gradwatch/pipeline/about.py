"""Tells of a run what a reader of its report wants to know: its settings, and the classes of its modules."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from torch import nn

from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.layers import plain_name
from gradwatch.reporting.text import listed, plural

_MOST_HPARAMS, _LONGEST = 40, 80  # hyperparameters, and characters of a value: a report is no dump of a config
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)  # a report is sent to others


def settings_of_run(
    model: nn.Module, optimizers: Iterable[Any], watcher: Watcher, trainer: Mapping[str, str], packages: Iterable[str]
) -> dict[str, str]:
    """Return the settings of a run by name, as short texts; those that are empty are left out.

    Args:
        model: that is trained.
        optimizers: that train it.
        watcher: that watches it.
        trainer: the settings that only the trainer knows, by name.
        packages: whose versions are told.
    """
    sizes = [(param.numel(), param.requires_grad) for param in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    schedule = watcher.intake.schedule
    found = {
        "model": type(model).__name__,
        "parameters": f"{sum(size for size, _ in sizes):,}, of which {trained:,} are trained",
        "optimizer": ", ".join(map(_optimizer, optimizers)),
        **trainer,
        "measured steps": f"each of the first {schedule.dense_steps}, then every {schedule.every_n_steps}.",
        "not watched": listed(watcher.unwatched),
        "started": time.strftime("%Y-%m-%d %H:%M %z"),
        "versions": ", ".join([f"Python {platform.python_version()}", *filter(None, map(_version, packages))]),
    }
    return {name: text for name, text in found.items() if text}


def processes(count: int, device: str) -> str:
    """Return the number of processes and their device, in words.

    Example:
        >>> processes(2, "CPU"), processes(1, "CUDA")
        ('2 processes on CPU', '1 process on CUDA')
    """
    return f"{count} process{'' if count == 1 else 'es'} on {device}"


def length_in_words(epochs: float, steps: int) -> str:
    """Return the length that was asked for; a limit that is not above 0 is none.

    Example:
        >>> length_in_words(3, -1)
        '3 epochs'
    """
    limits = {"epoch": epochs, "step": steps}
    return " or ".join(plural(int(count), noun) for noun, count in limits.items() if count > 0)


def hparams_shown(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the hyperparameters that are numbers or short texts and do not look like a secret.

    Example:
        >>> hparams_shown({"width": 8, "api_key": "x", "net": object()})
        {'hparams: width': '8'}
    """
    plain = [(str(name), value) for name, value in given.items() if isinstance(value, (bool, int, float, str))]
    shown = [(name, str(value)) for name, value in plain if not _SECRET.search(name) and len(str(value)) <= _LONGEST]
    return {f"hparams: {name}": text for name, text in shown[:_MOST_HPARAMS]}


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


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""
