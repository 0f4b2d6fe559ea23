"""Callback for Lightning's Fabric: a loop of one's own is watched without a line in it."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.callbacks.steps_past_lightning import StepsPastLightning
from gradwatch.containment import OnError, RaisedOnPurpose, say
from gradwatch.integrations.forward_again import ForwardAgain
from gradwatch.integrations.losses import Losses
from gradwatch.pipeline.about import processes, settings_of_run
from gradwatch.pipeline.ledger import OnFinding
from gradwatch.pipeline.optimizer_step import MeanLoss, parameters_of
from gradwatch.pipeline.origin_search import PART as AGAIN
from gradwatch.pipeline.reports import Places, Reports
from gradwatch.pipeline.run_files import Wanted
from gradwatch.pipeline.step_in_progress import StepInProgress
from gradwatch.pipeline.watched_through import WatchedThrough
from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.ranks import find_ranks
from gradwatch.probe.updates import KEPT_BYTES
from gradwatch.records import Detector
from gradwatch.reporting.loggers import sink_of
from gradwatch.trainer_internals import callbacks_of_fabric, wrapped_by_fabric

_FOLDER = "gradwatch_logs"  # of the record, where no logger has a folder
_PACKAGES = ("torch", "lightning", "gradwatch")


class GradwatchCallback(WatchedThrough):
    """Watch the gradients of a loop that Lightning's Fabric runs: ``Fabric(callbacks=[GradwatchCallback()])``.

    It begins when ``fabric.setup`` prepares a model, reads the gradients at each optimizer step, before a clip by
    ``fabric.clip_gradients`` and after it, and writes to Fabric's loggers. The loss of a step is the mean of what
    ``fabric.backward`` was given. Fabric has no event for the end: the summary and the report are written by
    ``fabric.call("on_train_end")``, by :meth:`close`, or when the program ends.

    One model is watched, the first that is set up; watch others with :func:`gradwatch.watch`. After ``setup_module``,
    which tells no callback, call ``fabric.call("on_after_setup", fabric=fabric, module=model)``.

    Args:
        every_n_steps, dense_steps: measure every n-th optimizer step, and each of the first ``dense_steps``.
        detectors: objects or functions that look at each Snapshot; None takes all with their defaults.
        include, exclude: patterns (``encoder.*``) of the layers to watch, None for all, and of those to leave out.
        on_finding: ``"warn"``, ``"raise"``, or a function of the Finding; with ``"stop"``, ``should_stop`` tells.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        history_size: largest number of Snapshots to keep; when there are more, every second one is dropped.
        columns: patterns (``grad_*``) of the columns to keep, record and log, None for all; detectors get theirs too.
        record_path: of the JSONL record; None takes ``gradwatch.jsonl`` in the folder of the first logger, or in
            ``gradwatch_logs``; False writes none.
        summary: print the table of layers and findings at the end.
        update_bytes, on_error: as in :class:`~gradwatch.GradientMonitor`.
        report: at the end write one HTML file to be sent to others: a path, or True for one beside the record.

    Raises:
        ValueError: for a number out of range or an unknown ``on_finding``; at ``fabric.setup``, for a pattern that
            matches no layer.

    Example:
        >>> import torch
        >>> from lightning.fabric import Fabric
        >>> callback = GradwatchCallback(record_path=False, summary=False)
        >>> fabric = Fabric(accelerator="cpu", callbacks=[callback])
        >>> model = torch.nn.Linear(2, 1)
        >>> model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> fabric.backward(model(torch.ones(4, 2)).square().mean())
        >>> _ = optimizer.step()
        >>> fabric.call("on_train_end")
        >>> callback.steps, callback.history[0].layers
        (1, ('(root)',))
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        dense_steps: int = 20,
        detectors: Sequence[Detector] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        on_finding: OnFinding = "warn",
        total_norm_every_step: bool = False,
        history_size: int = 500,
        columns: Sequence[str] | None = None,
        record_path: str | Path | Literal[False] | None = None,
        summary: bool = True,
        update_bytes: int = KEPT_BYTES,
        on_error: OnError | None = None,
        report: bool | str | Path = False,
    ) -> None:
        options = partial(
            Watcher,
            every_n_steps=every_n_steps,
            dense_steps=dense_steps,
            detectors=detectors,
            on_finding=on_finding,
            total_norm_every_step=total_norm_every_step,
            history_size=history_size,
            columns=columns,
            update_bytes=update_bytes,
            on_error=on_error,
        )
        self._make_watcher = partial(options, include=include, exclude=exclude)
        self._watcher = options(nn.Module())  # nothing to watch until a model is set up
        self._wanted = Wanted(record_path, summary, report)
        self._is_open = False
        self._model: weakref.ref[nn.Module] | None = None
        self._scaler: Any = None
        self._reports: Reports | None = None
        self._losses: Losses | None = None
        self._again: ForwardAgain | None = None
        self._loss = MeanLoss()
        self._last: Tensor | None = None
        self._step = StepInProgress()
        self._optimizers: list[Optimizer] = []  # that have stepped
        self._steps = StepsPastLightning(self._read)

    @property
    def should_stop(self) -> bool:
        """True if a finding has opened and ``on_finding`` is ``"stop"``."""
        return self._watcher.should_stop

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Begin to watch a model that Fabric has set up."""
        model = getattr(module, "module", module)
        if self._is_open:
            say(f"one model is watched already, so {type(model).__name__} is not; expected gradwatch.watch() for it.")
            return
        with self._watcher.containment.guard("the model"):
            self._watcher = self._make_watcher(model, ranks=find_ranks(wrapped_by_fabric(module)))
            self._scaler = getattr(fabric.strategy.precision, "scaler", None)
            self._open(fabric, model)

    def _open(self, fabric: Any, model: nn.Module) -> None:
        watcher = self._watcher
        self._is_open, self._model = True, weakref.ref(model)
        if fabric.is_global_zero:
            with watcher.containment.guard("reports"):
                self._reports = Reports(model, watcher, self._places(fabric, model))
                watcher.intake.on_snapshot = partial(self._reports.write, watcher)
        self._losses = watcher.containment.run("the losses", Losses, fabric, self)
        self._again = watcher.containment.run(AGAIN, ForwardAgain, model)
        self._steps.open(model)
        atexit.register(_close, weakref.ref(self))
        self._begin()

    def _places(self, fabric: Any, model: nn.Module) -> Places:
        loggers: list[Any] = list(fabric.loggers)
        folders = (getattr(logger, "log_dir", None) or logger.root_dir for logger in loggers)
        folder = next(filter(None, folders), None) or _FOLDER
        record = self._wanted.record_in(os.fspath(folder), resumes=False)
        own = {"precision": type(fabric.strategy.precision).__name__, "devices": _devices(fabric)}
        return Places(
            record=record,
            report=self._wanted.report_beside(record, os.fspath(folder)),
            summary=self._wanted.summary,
            sinks={f"logger {i} {type(each).__name__}": partial(sink_of, each) for i, each in enumerate(loggers)},
            settings=lambda watcher: settings_of_run(model, self._optimizers, watcher, own, _PACKAGES),
        )

    def _begin(self) -> None:
        self._step = StepInProgress()
        self._watcher.begin()
        for optimizer in self._optimizers[-1:]:
            with self._watcher.containment.guard("the clip"):
                self._watcher.read_before_clip(optimizer, partial(self._read, optimizer))

    def before_backward(self, loss: Tensor) -> None:
        """Take a loss."""
        with self._watcher.contained():
            self._loss.add(self._last)
            self._last = loss.detach().reshape(()) if loss.numel() == 1 else None
        self._watcher.expect(loss)

    def after_backward(self) -> None:
        """Search for the operation that made NaN, where the step has turned NaN on a CPU."""
        if self._again is not None and self._again.inputs is not None:
            self._watcher.seek_nan(self._again, self._again.inputs)
            self._again.forget()

    def _read(self, optimizer: Optimizer) -> None:
        if self._step.was_read:
            return
        with self._watcher.contained():
            self._step.read(self._watcher, optimizer, self._scaler)
            self._optimizers = [*(each for each in self._optimizers if each is not optimizer), optimizer]

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        """End the optimizer step."""
        if not self._is_open or not self._watcher.containment.run("the optimizer", self._holds, optimizer):
            return
        self._step.close()
        loss, self._last = self._loss.end(self._last), None
        is_skipped = self._scaler is not None and (not self._step.was_read or self._step.skipped)
        try:
            self._watcher.end(loss, loss_scale=self._step.loss_scale, skipped=is_skipped)
        finally:
            self._begin()

    def _holds(self, optimizer: Any) -> bool:
        """Return True for an optimizer of the model; one that a loss scaler held back may not have been seen yet."""
        if self._step.was_read or any(each is optimizer for each in self._optimizers):
            return True
        model = self._model() if self._model is not None else None
        own = set() if model is None else {id(param) for param in model.parameters()}
        return any(id(param) in own for param in parameters_of(optimizer))

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        """Pause, where the loop calls it: a validation may run in the middle of a step."""
        self._watcher.pause()

    def on_validation_end(self, *_: Any, **__: Any) -> None:
        """Go on with the step."""
        self._watcher.resume()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """End the watching, where the loop calls it."""
        self.close()

    def close(self) -> None:
        """Remove the hooks; write the pictures, the summary, the report and the end of the record. May be repeated."""
        if not self._is_open:
            return
        self._is_open = False
        watcher, reports, self._reports = self._watcher, self._reports, None
        self._steps.close()
        self._step.close()
        if self._losses is not None:
            self._losses.close()
        if self._again is not None:
            self._again.close()
        self._losses = self._again = None
        try:
            watcher.close()
        finally:
            if reports is not None:
                watcher.containment.run("reports", reports.close, watcher)
            watcher.intake.on_snapshot, self.about = None, watcher.about
            self._optimizers = []


class AddedCallback(GradwatchCallback):
    """A callback that nobody gave Fabric: it gives way to the user's, and refuses nothing.

    Nobody else holds it once the function with the loop has returned, and it has its summary still to write. So it is
    held here until the program ends, or until the next Fabric sets up a model: one is open at a time.

    Example:
        >>> from lightning.fabric import Fabric
        >>> added, own = AddedCallback(), GradwatchCallback(record_path=False, summary=False)
        >>> model = Fabric(accelerator="cpu", callbacks=[own, added]).setup(nn.Linear(2, 1))
        >>> added.about, own.close()
        ({}, None)
    """

    _latest: ClassVar[AddedCallback | None] = None

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Begin as any, unless another callback watches; the last that was added is this Fabric's own."""
        callbacks = callbacks_of_fabric(fabric) or [self]
        watching = [each for each in callbacks if isinstance(each, GradwatchCallback)]
        if watching[-1] is not self or not all(isinstance(each, AddedCallback) for each in watching):
            return
        latest = AddedCallback._latest
        if latest is not None and latest is not self:
            latest.close()
        AddedCallback._latest = self
        try:
            super().on_after_setup(fabric, module)
        except RaisedOnPurpose as error:
            say(f"this model is not watched: {error}")


def _close(callback: weakref.ref[GradwatchCallback]) -> None:
    if (found := callback()) is not None:
        found.close()


def _devices(fabric: Any) -> str:
    return processes(fabric.world_size, fabric.device.type.upper())
