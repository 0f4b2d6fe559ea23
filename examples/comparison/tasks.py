"""A run with all its settings, and the files in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwatch.examples.comparison.remedies import Run
from gradwatch.examples.comparison.results import Result, load
from gradwatch.examples.data import Name
from gradwatch.examples.run import FAST_EPOCHS


@dataclass(frozen=True)
class Task:
    """A run with a seed on a data set.

    Attributes:
        run: the remedy.
        seed: seed of the weights, the split and the shuffling.
        folder: folder of its logs and its result.
        dataset, data_dir, batch_size: as in ``ImageData``.
        max_epochs: number of epochs of a run whose factor is 1.
        fast: train only a few batches and epochs.
    """

    run: Run
    seed: int
    folder: Path
    dataset: Name
    data_dir: Path | None
    batch_size: int
    max_epochs: int
    fast: bool

    @property
    def title(self) -> str:
        """Return remedy and seed."""
        return f"{self.run.name}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """Return the number of epochs of this run."""
        epochs: int = self.max_epochs * self.run.epochs_factor
        return min(epochs, FAST_EPOCHS) if self.fast else epochs

    def shared_settings(self) -> dict[str, Any]:
        """Return the settings that all compared runs must share."""
        names = ("dataset", "batch_size", "max_epochs", "fast")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """Return all settings that the result depends on."""
        own = {
            "target": self.run.target,
            "arguments": dict(self.run.settings),
            "epochs": self.epochs,
            "seed": self.seed,
        }
        return {**self.shared_settings(), **own}

    def result(self, error: str = "") -> Result:
        """Return a result of this run without numbers."""
        return Result(self.run.name, self.run.family, self.seed, self.settings(), error)

    @property
    def output(self) -> Path:
        """Return the file for the run's output."""
        return self.folder / "output.log"

    def has_ended(self) -> bool:
        """Return True if there is a successful result with the same settings."""
        result = load(self.folder)
        return result is not None and not result.error and result.settings == self.settings()

    def outcome(self, end: object) -> Result:
        """Return the result that the process wrote; if there is none, write and return a failed one."""
        result = load(self.folder)
        if result is None:
            result = self.result(f"the process ended before the run did ({end}); see {self.output}")
            self.folder.mkdir(parents=True, exist_ok=True)
            result.save(self.folder)
        return result
