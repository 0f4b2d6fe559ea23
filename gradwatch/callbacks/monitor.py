"""Callback that watches the gradients of a fit and reports what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.callbacks.copies import Lineage, read_run
from gradwatch.callbacks.places_of_fit import places_of
from gradwatch.callbacks.releases_module import ReleasesModule
from gradwatch.callbacks.step_again import StepAgain
from gradwatch.callbacks.steps_past_lightning import StepsPastLightning
from gradwatch.callbacks.trainer_checks import is_last_step, ranks_of
from gradwatch.callbacks.unstepped import UnsteppedBatches
from gradwatch.checks import require_whole
from gradwatch.containment import OnError, say_once
from gradwatch.pipeline.ledger import OnFinding
from gradwatch.pipeline.origin_search import may_be_of_nan
from gradwatch.pipeline.reports import Reports
from gradwatch.pipeline.run_files import Wanted
from gradwatch.pipeline.step_in_progress import StepInProgress
from gradwatch.pipeline.watched_through import WatchedThrough
from gradwatch.pipeline.watcher import Watcher
from gradwatch.places import crash_in_words
from gradwatch.probe.updates import KEPT_BYTES
from gradwatch.records import Detector, Diagnosis, Finding
from gradwatch.reporting.reading import Record


class GradientMonitor(ReleasesModule, WatchedThrough):
    """Watch every layer's gradient, find problems, and show them in TensorBoard and on the terminal.

    Watching changes nothing: the weights are bit for bit those of an unwatched run. It ends nothing: a part that fails
    is switched off with one warning and listed in ``out_of_service``. Hooks are in place for measured steps only. From
    a CUDA device Snapshots and Findings arrive asynchronously, a step or more later, without synchronising.

    Every logger gets the keys of the first part of the table at measured steps. TensorBoard, Weights & Biases, MLflow,
    Comet and LitLogger get more than numbers: the second part is TensorBoard's, docs/loggers.md has that of the others.

    ====================================  =====================================================================
    logged key                            value
    ====================================  =====================================================================
    ``grad_norm/<layer>``                 L2 norm of the gradient of the layer's own parameters
    ``grad_output_norm/<layer>``          L2 norm of the gradient at the layer's output
    ``update_to_weight/<layer>``          size of the optimizer's step over that of the weights; about 1e-3 is usual
    ``dead_fraction/<layer>``             share of a ReLU's units that were active for no sample
    ``saturated_fraction/<layer>``        share of a bounded activation's outputs where it is flat
    ``grad_norm_total``                   L2 norm of all gradients, before clipping; also in ``callback_metrics``
    ``grad_norm_total_after``             the same after clipping, when the optimizer stepped
    ``clip_coefficient``                  ``grad_norm_total_after`` over ``grad_norm_total``
    ------------------------------------  ---------------------------------------------------------------------
    ``gradient_flow/1 layers by steps``   picture: heat map of ``grad_output_norm``
    ``gradient_flow/2 latest step``       picture: bars of ``grad_norm``, coloured by the open findings
    ``gradient_flow/3 calls of <layer>``  picture: the gradient over the calls or time steps of a recurrent layer
    ``gradwatch/findings``                text: all findings, their likely causes and what to try
    ``gradient/<place> <parameter>``      histogram of a gradient, with ``histogram_every_n_steps``
    ====================================  =====================================================================

    In TensorBoard a layer's name follows its place in the network (``grad_norm/03 conv1``), which puts the charts in
    that order. All columns of a Snapshot are in the record and in ``history``. ``history``, ``findings`` and
    ``diagnosis()`` can be read during the fit and after it. With several processes the numbers are those of all batches
    together, the same in each, and the first process writes.

    Args:
        every_n_steps, dense_steps: measure every n-th optimizer step, and each of the first ``dense_steps``. After
            suspicious ones a few more are measured: 20 a detector, and beyond these half as many as regular ones.
        detectors: objects or functions that look at each Snapshot; None takes all with their defaults.
        include, exclude: patterns (``encoder.*``) of the layers to watch, None for all, and of layers to leave out.
        on_finding: ``"warn"``, ``"stop"`` (ends the fit cleanly), ``"raise"``, or a function of the Finding.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        histogram_every_n_steps: write histograms of the gradients every n steps; None writes none.
        history_size: largest number of Snapshots to keep; when there are more, every second one is dropped.
        columns: patterns (``grad_*``) of the columns to keep, record and log, None for all; detectors get theirs too.
        record_path: of the record; None takes ``gradwatch.jsonl`` in the run's folder, False none; or ``x.parquet``.
        summary: print the table of layers and findings at the end of the fit. The last step is measured for it, where
            the Trainer knows it before.
        update_bytes: memory for copies of the weights, held for the length of a measured step, from which the update is
            measured; of what is beyond it a sample is kept, and the norm is estimated.
        measure_eagerly: run measured steps without compiled code, in which no layer can be read; needs torch 2.6. The
            weights then differ from an unwatched run's by rounding, and by dropout, which is drawn differently.
        on_error: ``"warn"`` switches off the part of the watching that fails; ``"raise"`` is for tests and to debug
            a detector. None takes the environment variable ``GRADWATCH_ON_ERROR``, else ``"warn"``.
        report: at the end of the fit write one HTML file: a path, or True for ``gradwatch.html`` beside the record.

    Raises:
        ValueError: for a number out of range or an unknown ``on_finding``; at the start of a fit, for a pattern that
            matches no layer. Only ``on_finding="raise"``, or a function given as ``on_finding``, may end a fit later.
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
        columns: Sequence[str] | None = None,
        record_path: str | Path | Literal[False] | None = None,
        summary: bool = True,
        update_bytes: int = KEPT_BYTES,
        measure_eagerly: bool = False,
        on_error: OnError | None = None,
        report: bool | str | Path = False,
    ) -> None:
        options = partial(
            Watcher,
            every_n_steps=every_n_steps,
            dense_steps=dense_steps,
            on_finding=on_finding,
            total_norm_every_step=total_norm_every_step,
            history_size=history_size,
            columns=columns,
            update_bytes=update_bytes,
            measure_eagerly=measure_eagerly,
            on_error=on_error,
        )
        self._make_watcher = partial(options, include=include, exclude=exclude)
        self._detectors = detectors
        self._make_blank = partial(options, nn.Module(), detectors=detectors)
        self._watcher = self._make_blank()  # nothing to watch until a fit starts
        if histogram_every_n_steps is not None:
            require_whole(self, histogram_every_n_steps=histogram_every_n_steps)
        self._histogram_every = histogram_every_n_steps
        self._wanted = Wanted(record_path, summary, report)
        self._lineage = Lineage()
        self._reports: Reports | None = None
        self._restored: dict[str, Any] | None = None
        self._step: StepInProgress | None = None
        self._again: StepAgain | None = None
        self._past_lightning: StepsPastLightning | None = None
        self._unstepped = UnsteppedBatches()
        self._is_in_batch = False  # of the training: an error is one of the user's step
        self._has_fitted = False  # this object, and not a copy of it

    @property
    def findings(self) -> list[Finding]:
        """All Findings of the fit, open and closed, in the order they opened."""
        self._say_where_it_is()
        return self._watcher.findings

    def diagnosis(self) -> list[Diagnosis]:
        """Return the likely causes of what was found, the likeliest first."""
        self._say_where_it_is()
        return self._watcher.diagnosis()

    def last_run(self) -> Record | None:
        """Return the record of the last fit that this monitor, or a copy of it, has watched; None where there was none.

        Libraries that copy callbacks, or train in a process of their own, leave the monitor that you hold empty. Their
        record is found all the same: of a copy in this process, or in one that was started from it on this machine.

        Raises:
            OSError: when the record is not there any more or cannot be opened.

        Example:
            >>> GradientMonitor().last_run() is None
            True
        """
        place = self._lineage.last
        return read_run(place) if place else super().last_run()

    @property
    def elsewhere(self) -> str:
        """A sentence that says where the run is, if a copy watched it and this monitor watched nothing; else empty."""
        if self._has_fitted or self.history or not (place := self._lineage.last):
            return ""
        return f"this monitor watched no fit, and a copy of it did: last_run() reads its record, {place}"

    def _say_where_it_is(self) -> None:
        if elsewhere := self.elsewhere:
            say_once(elsewhere)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers and open the reports."""
        before = self.state_dict() if trainer.global_step > 0 else None  # a Trainer that fits again
        state, self._restored, self._has_fitted = self._restored or before, None, True
        self._watcher = watcher = self._watcher_of(trainer, pl_module)
        self._step, self._unstepped = None, UnsteppedBatches()
        containment = watcher.containment
        if state:
            containment.run("the memory of an earlier run", watcher.load_state_dict, state)
        if trainer.is_global_zero:
            with containment.guard("reports"):
                self._open_reports(trainer, pl_module, resumes=bool(state))
        self._past_lightning = StepsPastLightning(partial(self._read, trainer, pl_module, False), self._note_stranger)
        with watcher.contained():
            self._past_lightning.open(pl_module)

    def _open_reports(self, trainer: Trainer, pl_module: LightningModule, *, resumes: bool) -> None:
        places = places_of(trainer, pl_module, self._wanted, self._watcher, resumes=resumes)
        self._reports = Reports(pl_module, self._watcher, places)
        self._lineage.note(self._reports.record_path)
        self._watcher.intake.on_snapshot = partial(self._reports.write, self._watcher)

    def _publish(self, trainer: Trainer, total_norm: Tensor) -> None:
        """Give the total norm to the other callbacks and the loggers."""
        trainer.callback_metrics["grad_norm_total"] = total_norm  # not pl_module.log: a call costs 0.5 ms

    def _watcher_of(self, trainer: Trainer, pl_module: LightningModule) -> Watcher:
        """Return a Watcher of the module; a blank one where looking at the module fails."""
        containment = self._watcher.containment
        with containment.guard("the model"):
            return self._make_watcher(pl_module, detectors=_copied(self._detectors), ranks=ranks_of(trainer))
        blank = self._make_blank()
        blank.containment.failures += containment.failures[-1:]
        return blank

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how the schedules of the learning rate advance."""
        by_plan = {config.interval for config in trainer.lr_scheduler_configs if not config.reduce_on_plateau}
        if len(by_plan) == 1 and pl_module.automatic_optimization:
            self._watcher.set_schedule_interval(by_plan.pop())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin an optimizer step with the first batch that it accumulates."""
        watcher, self._is_in_batch = self._watcher, True
        if watcher.origins.is_open:
            try:  # at each step, where a guard takes as long as what it guards
                self._again = StepAgain(trainer, pl_module, batch, batch_idx)
            except Exception as error:
                watcher.origins.give_up(error)
        if self._step is None:
            self._step = StepInProgress()
            watcher.begin(is_last=self._wanted.shows_last_step and self._is_last(trainer, batch_idx))

    def _is_last(self, trainer: Trainer, batch_idx: int) -> bool:
        try:
            return is_last_step(trainer, batch_idx, is_shared=self._watcher.is_shared)
        except Exception as error:
            self._watcher.containment.fail("the last step", error)
            return False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause: a validation may run in the middle of a step that accumulates batches."""
        self._watcher.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the step."""
        self._watcher.resume()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, to tell its backward pass from others; with manual optimization a step may have several."""
        if pl_module.automatic_optimization:
            self._watcher.expect(loss, trainer.accumulate_grad_batches)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look if the step turned NaN, before the weights do."""
        if (again := self._again) is not None:
            again.passed += 1
            self._watcher.seek_nan(again, again.batch, again.state)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the gradients.

        Lightning calls this hook when it has unscaled and accumulated them, and before it clips them. The hook
        ``on_after_backward`` comes too early: gradients are still scaled there, and accumulated in part.
        """
        self._read(trainer, pl_module, True, optimizer)

    def _read(self, trainer: Trainer, pl_module: LightningModule, is_announced: bool, optimizer: Optimizer) -> None:
        step = self._step = self._step or StepInProgress()
        step.was_read = True  # or can't be: it ends with this batch
        with self._watcher.contained(with_numpy=self._watcher.is_measuring):
            if is_announced and self._past_lightning is not None:
                self._past_lightning.mark_announced(optimizer)
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None and not is_announced:
                self._unstepped.warn_of_scaled_gradients(optimizer)
                return
            has_norm = step.read(self._watcher, optimizer, scaler)
            self._unstepped.has_read = True
            if has_norm and (total := self._watcher.total_norm) is not None:
                self._publish(trainer, total)
        if self._reports and self._histogram_every and self._watcher.steps % self._histogram_every == 0:
            self._reports.histograms(self._watcher.steps)

    def _note_stranger(self, optimizer: Optimizer) -> None:
        self._unstepped.note_stranger(self._step, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the optimizer step, unless it goes on accumulating."""
        step, self._again, self._is_in_batch = self._step, None, False
        if step is None:
            return
        with self._watcher.contained(with_numpy=False):
            step.batches += 1
            step.add_loss(outputs)
        self._unstepped.read(step, self._watcher, trainer, pl_module)
        if not step.was_read:
            if self._unstepped.ends(step, self._watcher, trainer, pl_module):
                self._step = None
            return
        step.close()
        self._step = None
        # In automatic optimization, a training_step that returns None leaves a batch out on purpose.
        should_learn = step.loss is not None or not pl_module.automatic_optimization
        known: dict[str, Any] = {"loss_scale": step.loss_scale, "skipped": step.skipped}
        snapshot = self._watcher.end(step.loss, should_learn=should_learn, **known)
        if snapshot is not None:
            # Each rank may have had only a part of the gradients.
            if self._watcher.total_norm is None and not math.isnan(snapshot.total_norm):
                self._publish(trainer, torch.tensor(snapshot.total_norm))
            trainer.should_stop |= self._watcher.should_stop

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the remaining hooks; write the pictures, the summary and the end of the record."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the same way after an error, which another error must not replace."""
        if isinstance(exception, Exception) and self._is_in_batch:
            if (again := self._again) is not None and may_be_of_nan(exception):
                again.passed = 0
                self._watcher.seek_nan(again, again.batch, again.state, crashed=True)
            if self._reports is not None:
                self._reports.crash = crash_in_words(exception, pl_module)
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the same way where a fit ended before ``on_train_end``."""
        self._finish(quietly=True)

    def _finish(self, *, quietly: bool = False) -> None:
        watcher, reports = self._watcher, self._reports
        with watcher.containment.guard("the end of the fit"):
            self._close_step(quietly=quietly)
        self._reports = None
        try:
            watcher.close(quietly=quietly)
        finally:  # on_finding="raise" may raise for the last steps; their finding is recorded all the same
            if reports is not None:
                watcher.containment.run("reports", reports.close, watcher)
            watcher.intake.on_snapshot, self.about = None, watcher.about
            self._watcher = watcher.containment.run("the memory of the fit", copy, watcher) or self._make_blank()
            self.release()

    def _close_step(self, *, quietly: bool) -> None:
        step, past_lightning = self._step, self._past_lightning
        self._step = self._past_lightning = self._again = None
        self._is_in_batch = False
        if past_lightning is not None:
            past_lightning.close()
        if step is not None:
            step.close()
            if step.batches and self._watcher.has_seen_gradients and not quietly:
                self._unstepped.warn_of_no_step(step.batches, self._watcher)

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds the settings and the records; the current fit stays with the original."""
        current = dict.fromkeys(("_step", "_again", "_reports", "_past_lightning"))
        return {**super().__getstate__(), **current, "_has_fitted": False}

    def state_dict(self) -> dict[str, Any]:
        """Return the step count, findings, memories of detectors and some of the Snapshots, for a checkpoint."""
        return self._watcher.containment.run("the memory in a checkpoint", self._watcher.state_dict) or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of an earlier run until the fit starts, as there is no model to watch yet."""
        self._restored = state_dict


def _copied(detectors: Sequence[Detector] | None) -> Sequence[Detector] | None:
    """Return copies, so that a fit does not inherit memories of an earlier one; uncopyable detectors are shared."""
    try:
        return deepcopy(detectors)
    except Exception:
        return detectors
