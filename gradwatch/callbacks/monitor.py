"""The optimizer step that is under way, over the batches it accumulates and the optimizers it steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.callbacks.kept_callback import KeptCallback
from gradwatch.callbacks.reports import Reports, open_reports
from gradwatch.callbacks.trainer_checks import ranks_of
from gradwatch.callbacks.unannounced import UnannouncedSteps
from gradwatch.containment import OnError, OutOfService, say
from gradwatch.pipeline.ledger import OnFinding
from gradwatch.pipeline.optimizer_step import Stepping, scale_on_device, unscales_itself
from gradwatch.pipeline.schedule import require_count
from gradwatch.pipeline.watcher import Watcher
from gradwatch.records import Detector, Diagnosis, Finding, Snapshot


@dataclass
class OpenStep:
    """What is known of a step so far.

    Attributes:
        was_read: an optimizer is about to step, or has: the step ends with this batch.
        batches: how many have ended in it.
        loss: sum of the batches' losses, each as a share of the step, on the device.
        loss_scale: what the loss was multiplied by, on the device; None without a loss scaler.

    Example:
        >>> import torch
        >>> step = OpenStep()
        >>> for loss in (0.25, 0.5):
        ...     step.add_loss({"loss": torch.tensor(loss)})
        >>> step.loss
        tensor(0.7500)
    """

    was_read: bool = False
    batches: int = 0
    loss: Tensor | None = None
    loss_scale: Tensor | None = None
    _stepping: Stepping = field(default_factory=Stepping)

    @property
    def skipped(self) -> bool | Tensor:
        """Whether a loss scaler left out an optimizer's step; on the device where only the optimizer knows."""
        return self._stepping.skipped if self.loss_scale is not None else False

    def add_loss(self, outputs: Any) -> None:
        """Take in what ``training_step`` gave, if there is a loss in it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
            self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def read(self, watcher: Watcher, optimizer: Optimizer, scaler: Any) -> None:
        """Have the gradients of an optimizer read that is about to step, and again when it has.

        Args:
            watcher: reads them.
            optimizer: its gradients are accumulated and not yet clipped.
            scaler: the loss scaler, if there is one; it has unscaled them, unless the optimizer does.
        """
        self.was_read = True
        unscales = scaler is not None and unscales_itself(optimizer)
        watcher.read(optimizer, scale_on_device(scaler, optimizer) if unscales else None)
        if watcher.norms:
            self._stepping.expect(optimizer, watcher.read_again, early=unscales)
            self.loss_scale = None if scaler is None else scale_on_device(scaler, optimizer)

    def close(self) -> None:
        """Remove the hooks from the optimizers."""
        self._stepping.close()


_MOST_BATCHES = 64  # of one step that nobody declares; more than manual accumulation goes over, as a rule


class GradientMonitor(KeptCallback):
    """Watch every layer's gradient, find what is wrong, and show it in TensorBoard and on the terminal.

    Watching changes nothing: the weights are bit for bit those of an unwatched run. It ends nothing: what fails inside
    of it is switched off, said once and listed in ``out_of_service``. Hooks are in place for measured steps only. Any
    logger gets the scalars; TensorBoard also a layout, a heat map, bars and the findings as text. From a CUDA device a
    Snapshot, and what is found in it, comes a step or more later, as nobody waits for it.

    ==============================  =====================================================================
    logged key                      what it is
    ==============================  =====================================================================
    ``grad_norm/<layer>``           L2 norm of the gradient of the layer's own parameters
    ``grad_output_norm/<layer>``    L2 norm of the gradient at the layer's output
    ``dead_fraction/<layer>``       share of a ReLU's units that fire for no sample
    ``saturated_fraction/<layer>``  share of a Sigmoid's or Tanh's outputs where it is flat
    ``grad_norm_total``             all gradients together, before clipping; also in ``callback_metrics``
    ``grad_norm_total_after``       the same when the optimizer stepped
    ``clip_coefficient``            the second over the first
    ==============================  =====================================================================

    In TensorBoard a layer's name follows its place in the network (``grad_norm/03 conv1``), so that charts stand in
    that order. All columns of a Snapshot are in the record and in ``history``, which, like ``findings`` and
    ``diagnosis()``, is there during the fit and after it. With
    several processes the numbers are those of all batches together, the same in each, and the first one writes.

    Args:
        every_n_steps, dense_steps: measure every so many optimizer steps, and each of the first so many.
        detectors: objects or functions that look at each Snapshot; None takes all with their defaults.
        include, exclude: patterns (``encoder.*``) of the layers to watch, None for all, and of those to leave out.
        on_finding: ``"warn"``, ``"stop"`` (ends the fit cleanly), ``"raise"``, or a function of the Finding.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        histogram_every_n_steps: write histograms of the gradients every so many steps; None writes none.
        history_size: how many Snapshots are kept; when there are more, every second one is let go.
        record_path: where the JSONL record goes; None puts ``gradwatch.jsonl`` into the logger's folder.
        summary: print the table of layers and findings at the end of the fit.
        measure_eagerly: run measured steps without compiled code, in which no layer can be read; needs torch 2.6. The
            weights are then an unwatched run's but for rounding, and for dropout, which compiled code draws otherwise.
        on_error: ``"warn"`` switches off the part of the watching that fails, says so once and lets the training go on;
            ``"raise"`` is for tests, and for people who debug a detector. None takes the environment variable
            ``GRADWATCH_ON_ERROR``, else ``"warn"``.

    Raises:
        ValueError: for a number out of range or an unknown ``on_finding``; at the start of a fit, for a pattern that
            matches no layer. Nothing else of the monitor's ends a fit, but ``on_finding="raise"`` and what a function
            given as ``on_finding`` raises.
        TypeError: for a detector that can't be called.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientMonitor()], logger=False, enable_checkpointing=False)
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
        histogram_every_n_steps: int | None = None,
        history_size: int = 500,
        record_path: str | Path | None = None,
        summary: bool = True,
        measure_eagerly: bool = False,
        on_error: OnError | None = None,
    ) -> None:
        options = partial(
            Watcher,
            every_n_steps=every_n_steps,
            dense_steps=dense_steps,
            on_finding=on_finding,
            total_norm_every_step=total_norm_every_step,
            history_size=history_size,
            measure_eagerly=measure_eagerly,
            on_error=on_error,
        )
        self._make_watcher = partial(options, include=include, exclude=exclude)
        self._detectors = detectors
        self._make_blank = partial(options, nn.Module(), detectors=detectors)
        self._watcher = self._make_blank()  # nothing to watch until a fit starts
        if histogram_every_n_steps is not None:
            require_count("histogram_every_n_steps", histogram_every_n_steps)
        self._histogram_every = histogram_every_n_steps
        self._record_path = record_path
        self._summary = summary
        self._reports: Reports | None = None
        self._restored: dict[str, Any] | None = None
        self._step: OpenStep | None = None
        self._unannounced: UnannouncedSteps | None = None
        self._has_told = False  # that no optimizer is seen to step

    @property
    def findings(self) -> list[Finding]:
        """All Findings of the fit, open and closed, in the order they opened."""
        return self._watcher.findings

    @property
    def history(self) -> list[Snapshot]:
        """The Snapshots that are kept."""
        return self._watcher.history

    @property
    def steps(self) -> int:
        """The number of optimizer steps of the fit so far."""
        return self._watcher.steps

    @property
    def out_of_service(self) -> list[OutOfService]:
        """The parts of the watching that failed in this fit and were switched off."""
        return self._watcher.out_of_service

    def diagnosis(self) -> list[Diagnosis]:
        """Return the likely causes of what was found, the likeliest first."""
        return self._watcher.diagnosis()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers and open the reports."""
        before = self.state_dict() if trainer.global_step > 0 else None  # a Trainer that goes on
        state, self._restored = self._restored or before, None
        self._watcher = watcher = self._watcher_of(trainer, pl_module)
        self._step, self._has_told = None, False
        if state:
            watcher.containment.run("the memory of an earlier run", watcher.load_state_dict, state)
        self._reports = watcher.containment.run(
            "reports", open_reports, trainer, self._record_path, watcher.containment
        )
        if self._reports:
            watcher.intake.on_snapshot = partial(self._reports.take, watcher)
        self._unannounced = UnannouncedSteps(partial(self._read, trainer, pl_module, False))
        with watcher.contained():
            self._unannounced.open(pl_module)

    def _watcher_of(self, trainer: Trainer, pl_module: LightningModule) -> Watcher:
        """Return a Watcher of the module; one of nothing where the module can't be looked at."""
        containment = self._watcher.containment
        with containment.guard("the model"):
            return self._make_watcher(pl_module, detectors=_copied(self._detectors), ranks=ranks_of(trainer))
        blank = self._make_blank()
        blank.containment.failures += containment.failures[-1:]
        return blank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin an optimizer step with the first batch that it accumulates."""
        if self._step is None:
            self._step = OpenStep()
            self._watcher.begin()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module alone while it is validated in the middle of a step."""
        self._watcher.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the step."""
        self._watcher.resume()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Tell the backward pass of the loss from others; by hand, a step may have several losses."""
        if pl_module.automatic_optimization:
            self._watcher.expect(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the gradients: unscaled and accumulated, not yet clipped."""
        with self._watcher.contained():
            if self._unannounced is not None:
                self._unannounced.announced(optimizer)
        self._read(trainer, pl_module, True, optimizer)

    def _read(self, trainer: Trainer, pl_module: LightningModule, is_announced: bool, optimizer: Optimizer) -> None:
        step = self._step = self._step or OpenStep()
        with self._watcher.contained():
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None and not is_announced:
                self._tell_of_scaled_gradients(optimizer)
                step.was_read = True
                return
            step.read(self._watcher, optimizer, scaler)
            if (total := self._watcher.total_norm) is not None:  # into the dict: a call of pl_module.log costs 0.5 ms
                trainer.callback_metrics["grad_norm_total"] = total
        if self._reports and self._histogram_every and self._watcher.steps % self._histogram_every == 0:
            self._reports.histograms(pl_module, self._watcher.steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the optimizer step, unless it goes on accumulating."""
        step = self._step
        if step is None:
            return
        with self._watcher.contained():
            step.batches += 1
            step.add_loss(outputs)
        if not step.was_read:
            self._bound(step, trainer, pl_module)
            return
        step.close()
        self._step = None
        snapshot = self._watcher.end(step.loss, loss_scale=step.loss_scale, skipped=step.skipped)
        if snapshot is not None:
            if self._watcher.total_norm is None:  # each rank had only a part of the gradients
                trainer.callback_metrics["grad_norm_total"] = torch.tensor(snapshot.total_norm)
            trainer.should_stop |= self._watcher.should_stop

    def _bound(self, step: OpenStep, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a step that no optimizer ends from going on for ever: its hooks would slow every batch."""
        if self._watcher.is_shared or not self._watcher.is_measuring:
            return
        declared = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        if not self._watcher.has_seen_gradients and (declared == 1 or step.batches > 1):
            self._watcher.abandon()  # a batch without a backward pass
        elif step.batches >= max(declared, _MOST_BATCHES):
            self._watcher.abandon()
            self._tell_of_no_step(step.batches)
        else:
            return
        if declared == 1:
            self._step = None

    def _tell_of_no_step(self, batches: int) -> None:
        if self._watcher.steps == 0 and not self._has_told:
            self._has_told = True
            say(
                f"gradients came in {batches} batches, and no optimizer was seen to step, so nothing can be measured: "
                "expected a torch.optim.Optimizer that holds the model's parameters and whose step() is called."
            )

    def _tell_of_scaled_gradients(self, optimizer: Optimizer) -> None:
        if not self._has_told:
            self._has_told = True
            say(
                f"{type(optimizer).__name__} steps past the loss scaler of the Trainer, so its gradients can't be told "
                "from scaled ones and are not read; expected self.optimizers(), without use_pl_optimizer=False."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is left of the hooks; write the pictures, the summary and the record's end."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end, when the fit is interrupted; another error is under way."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As at the end, where neither came."""
        self._finish(quietly=True)

    def _finish(self, *, quietly: bool = False) -> None:
        watcher, reports = self._watcher, self._reports
        with watcher.containment.guard("the end of the fit"):
            self._close_step(quietly=quietly)
        self._reports = None
        try:
            watcher.close(quietly=quietly)
        finally:  # a finding of the last steps that is raised is recorded first
            if reports is not None:
                watcher.containment.run("reports", partial(reports.close, watcher, summary=self._summary))
            watcher.intake.on_snapshot = None
            self._watcher = watcher.containment.run("the memory of the fit", copy, watcher) or self._make_blank()
            self.let_go()

    def _close_step(self, *, quietly: bool) -> None:
        step, unannounced = self._step, self._unannounced
        self._step = self._unannounced = None
        if unannounced is not None:
            unannounced.close()
        if step is not None:
            step.close()
            if step.batches and self._watcher.has_seen_gradients and not quietly:
                self._tell_of_no_step(step.batches)

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds the settings and what was recorded; a fit that is under way stays with the original."""
        return {**super().__getstate__(), "_step": None, "_reports": None, "_unannounced": None}

    def state_dict(self) -> dict[str, Any]:
        """The step count, the findings, what detectors remember and some of the Snapshots, for a checkpoint."""
        return self._watcher.containment.run("the memory in a checkpoint", self._watcher.state_dict) or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where an earlier run stopped, once the fit starts."""
        self._restored = state_dict


def _copied(detectors: Sequence[Detector] | None) -> Sequence[Detector] | None:
    """Return copies, for a fit without the memory of an earlier one; a detector may refuse to be copied."""
    try:
        return deepcopy(detectors)
    except Exception:
        return detectors
