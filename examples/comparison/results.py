"""The result of a run, and its file."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradwatch import Finding

FILE = "result.json"
GOOD_ACCURACY = 0.70


@dataclass(frozen=True)
class Result:
    """The numbers of one run; a failed one has an ``error`` and the numbers known until then.

    Attributes:
        name, family: of the remedy.
        seed: of the run.
        settings: everything that the numbers depend on, except for the code.
        error: reason of the failure; empty after a success.
        seconds: duration.
        test_accuracy: after the last epoch.
        steps_per_epoch: optimizer steps in an epoch.
        curves: ``train_loss``, ``train_accuracy``, ``val_loss`` and ``val_accuracy``, a value an epoch.
        layers: the layers with weights except for normalization, in network order.
        start, end: norm of the gradient of each, at the first and at the last measured step; NaN where it had none,
            being frozen.
        findings: findings of the monitor.

    Example:
        >>> curves = {"train_loss": [2.3, 0.9], "val_accuracy": [0.10, 0.72]}
        >>> result = Result("adam", "optimizer", 42, steps_per_epoch=3, curves=curves, start=(1e-4, 0.5))
        >>> result.train_loss, result.ratio_start, result.steps_to_good
        (0.9, 0.0002, 6)
    """

    name: str
    family: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = math.nan
    test_accuracy: float = math.nan
    steps_per_epoch: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    start: tuple[float, ...] = ()
    end: tuple[float, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def reason(self) -> str:
        """Return the error in one line."""
        return " ".join(self.error.split())

    @property
    def train_loss(self) -> float:
        """Return the mean over the last epoch's batches."""
        return _last(self.curves.get("train_loss", []))

    @property
    def ratio_start(self) -> float:
        """Return the gradient norm of the first layer over that of the last, at the first measured step."""
        return _ratio(self.start)

    @property
    def ratio_end(self) -> float:
        """Return the same ratio at the last measured step."""
        return _ratio(self.end)

    @property
    def steps_to_good(self) -> int | None:
        """Return the optimizer steps until the first validation, one each epoch, with 70 % accuracy."""
        for epoch, accuracy in enumerate(self.curves.get("val_accuracy", []), start=1):
            if accuracy >= GOOD_ACCURACY:
                return epoch * self.steps_per_epoch
        return None

    def save(self, folder: Path) -> None:
        """Write the file at once, so that a crash never leaves a part of it."""
        part = folder / f"{FILE}.part"
        part.write_text(json.dumps(_strict(asdict(self)), indent=1, allow_nan=False))
        os.replace(part, folder / FILE)


def load(folder: Path) -> Result | None:
    """Return the result in a run's folder; None if the run has not ended."""
    path = folder / FILE
    if not path.exists():
        return None
    given = json.loads(path.read_text())
    findings = [
        Finding(**{**each, "layers": tuple(each["layers"]), **_floats({k: each[k] for k in ("value", "threshold")})})
        for each in given["findings"]
    ]
    floats = {name: _floats(given[name]) for name in ("seconds", "test_accuracy", "curves")}
    tuples = {name: tuple(_floats(given[name])) for name in ("start", "end")}
    return Result(**{**given, **floats, **tuples, "layers": tuple(given["layers"]), "findings": tuple(findings)})


def load_all(folder: Path) -> list[Result]:
    """Return the results in all folders below, by name and seed."""
    found = [load(path.parent) for path in folder.rglob(FILE)]
    return sorted((result for result in found if result is not None), key=lambda result: (result.name, result.seed))


def _last(values: list[float]) -> float:
    return values[-1] if values else math.nan


def _ratio(norms: tuple[float, ...]) -> float:
    return norms[0] / norms[-1] if norms and norms[-1] else math.nan


def _strict(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and infinity become text."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(each) for key, each in value.items()}
    return [_floats(each) for each in value] if isinstance(value, list) else float(value)
