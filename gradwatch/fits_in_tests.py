"""The fits that a test makes: watched without a file, a log or a word, and kept for the test's end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gradwatch.callbacks.added import AddedMonitor
from gradwatch.callbacks.monitor import GradientMonitor
from gradwatch.records import Finding, Snapshot
from gradwatch.short_runs.loop import detectors_for, ignore_finding

_STEPS = 20  # the patience of the detectors, that of `gradwatch check`; each of these steps is measured, as there
_EVERY = 10  # steps after them: a test that trains for thousands is hardly slower


@dataclass(frozen=True)
class Fit:
    """A fit that came to its end.

    Attributes:
        name: class of the module.
        history: its measured steps.
        findings: all of them, also those that have closed.
    """

    name: str
    history: tuple[Snapshot, ...]
    findings: tuple[Finding, ...]


class FitMonitor(AddedMonitor):
    """Watches the fits of a Trainer in a test, and keeps each that came to its end.

    A fit that ended by an exception is not kept: whether it may do that is for the test to say. A monitor of the user's
    is left in its place, and its findings are kept.

    Attributes:
        kept: the fits of all Trainers of this process. It is the class's, so that a monitor can be copied and pickled.

    Example:
        >>> FitMonitor().history, FitMonitor.take()
        ([], [])
    """

    kept: ClassVar[list[Fit]] = []
    _is_fitting = False

    def __init__(self) -> None:
        super().__init__(
            every_n_steps=_EVERY,
            dense_steps=_STEPS,
            detectors=detectors_for(_STEPS),
            on_finding=ignore_finding,
            record_path=False,
            summary=False,
        )

    @classmethod
    def take(cls) -> list[Fit]:
        """Return the fits that have been kept since the last call."""
        taken, cls.kept[:] = cls.kept[:], []
        return taken

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer to a monitor of the user's, and follow that."""
        super().setup(trainer, pl_module, stage)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        own = next((each for each in callbacks if isinstance(each, GradientMonitor)), self)
        if not isinstance(own, FitMonitor):
            trainer.callbacks = [*callbacks, _Follower(own)]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin as any monitor."""
        self._is_fitting = True
        super().on_fit_start(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep nothing."""
        self._is_fitting = False
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the fit."""
        super().teardown(trainer, pl_module, stage)
        if self._is_fitting:
            _keep(self, pl_module)
        self._is_fitting = False

    def _open_reports(self, trainer: Trainer, pl_module: LightningModule, *, resumes: bool) -> None:
        """Write nothing: the loggers are the test's."""

    def _publish(self, trainer: Trainer, total_norm: Tensor) -> None:
        """Give nothing to the metrics, which a test may compare."""


class _Follower(Callback):
    """Keeps the fits of a monitor that the user has given."""

    def __init__(self, monitor: GradientMonitor) -> None:
        self._monitor = monitor

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            _keep(self._monitor, pl_module)


def _keep(monitor: GradientMonitor, module: LightningModule) -> None:
    if monitor.history:
        FitMonitor.kept.append(Fit(type(module).__name__, tuple(monitor.history), tuple(monitor.findings)))
