"""Callback for Hugging Face's Trainer, and for the trainers of TRL, which are built on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradwatch.containment import OnError, RaisedOnPurpose, SettingError, say
from gradwatch.integrations.forward_again import ForwardAgain
from gradwatch.integrations.losses import Losses
from gradwatch.integrations.transformers_facts import PART, Facts
from gradwatch.integrations.transformers_reports import places_of
from gradwatch.pipeline.ledger import OnFinding
from gradwatch.pipeline.optimizer_step import unwrapped
from gradwatch.pipeline.origin_search import PART as AGAIN
from gradwatch.pipeline.reports import Reports
from gradwatch.pipeline.run_files import Wanted
from gradwatch.pipeline.step_in_progress import StepInProgress
from gradwatch.pipeline.watched_through import WatchedThrough
from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.deepspeed import WAY_OUT
from gradwatch.probe.ranks import find_ranks
from gradwatch.probe.updates import KEPT_BYTES
from gradwatch.records import Detector
from gradwatch.torch_internals import has_unscaled, unscales_itself

_LOSSES = "the losses"  # that is out of service when noting one fails
_STATE = "gradwatch.pt"  # in each checkpoint


class GradwatchCallback(TrainerCallback, WatchedThrough):
    """Watch every layer's gradient in Hugging Face's Trainer, find problems, and say where and why.

    It does in ``transformers.Trainer``, and in the trainers of TRL, what :class:`~gradwatch.GradientMonitor` does in
    Lightning's. Gradients are read once an optimizer step: accumulated, unscaled, just before the Trainer clips them,
    and once more as the optimizer sees them. The weights are bit for bit those of an unwatched run.

    The Trainer's own reporting gets the numbers at measured steps: TensorBoard and Weights & Biases also the pictures,
    the findings and the verdict, all others of ``report_to`` the scalars. The record is ``gradwatch.jsonl`` in
    ``output_dir``. A checkpoint keeps the memory, and a resumed run goes on with it. Steps are counted from 0, so step
    k is the one after which the Trainer's ``global_step`` is k + 1.

    An error that ends the training is not told to callbacks: then the hooks of a measured step stay with the model
    until :meth:`close`, and there is no report; ``gradwatch report`` makes one of the record.

    Args:
        every_n_steps, dense_steps: measure every n-th optimizer step, and each of the first ``dense_steps``.
        detectors: objects or functions that look at each Snapshot; None takes all with their defaults.
        include, exclude: patterns (``model.layers.*``) of the layers to watch, None for all, and of those to leave out.
        on_finding: ``"warn"``, ``"stop"`` (ends the training cleanly), ``"raise"``, or a function of the Finding.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        history_size: largest number of Snapshots to keep; when there are more, every second one is dropped.
        columns: patterns (``grad_*``) of the columns to keep, record and log, None for all; detectors get theirs too.
        record_path: of the JSONL record; None takes ``gradwatch.jsonl`` in ``output_dir``, False writes none.
        summary: print the table of layers and findings at the end of the training.
        update_bytes, on_error: as in :class:`~gradwatch.GradientMonitor`.
        report: at the end write one HTML file to be sent to others: a path, or True for one beside the record.

    Raises:
        ValueError: for a number out of range or an unknown ``on_finding``; at the start of a training, for a pattern
            that matches no layer, and for DeepSpeed.

    Example:
        >>> from gradwatch.integrations.transformers import GradwatchCallback
        >>> callback = GradwatchCallback(every_n_steps=10)  # Trainer(..., callbacks=[callback])
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
        self._make_blank = partial(options, nn.Module())
        self._watcher = self._make_blank()  # nothing to watch until a training starts
        self._wanted = Wanted(record_path, summary, report)
        self._reads_every_total = total_norm_every_step
        self._open: Callable[[], None] | None = None  # opens the reports, once
        self._reports: Reports | None = None
        self._step: StepInProgress | None = None
        self._losses: Losses | None = None
        self._facts = Facts()
        self._again: ForwardAgain | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers, take up the memory of a checkpoint, and listen for losses."""
        self.close()
        self._watcher = self._make_blank()  # it stays where looking at the model fails
        containment = self._watcher.containment
        trainer = containment.run("the Trainer", trainer_that_calls)
        _refuse_deepspeed(args, trainer)
        with containment.guard("the model"):
            wrapped = getattr(trainer, "model_wrapped", kwargs["model"])
            self._watcher = self._make_watcher(kwargs["model"], ranks=find_ranks(wrapped))
        containment = self._watcher.containment
        before = containment.run("the memory of an earlier run", _memory, args, state)
        if before:
            containment.run("the memory of an earlier run", self._watcher.load_state_dict, before)
        if state.is_world_process_zero:  # at the first step all callbacks of report_to will have begun
            self._open = partial(self._report, args, state, trainer, kwargs["model"], resumes=bool(before))
        self._facts.open(trainer)
        self._again = containment.run(AGAIN, ForwardAgain, kwargs["model"])
        if trainer is not None:
            self._losses = containment.run(_LOSSES, Losses, trainer.accelerator, self)

    def _report(
        self, args: TrainingArguments, state: TrainerState, trainer: Trainer | None, model: nn.Module, *, resumes: bool
    ) -> None:
        places = places_of(args, state, trainer, self._wanted, resumes=resumes)
        self._reports = Reports(model, self._watcher, places)
        self._watcher.intake.on_snapshot = partial(self._reports.write, self._watcher)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin an optimizer step with the first batch that it accumulates."""
        if (begin := self._open) is not None:
            self._open = None
            self._watcher.containment.run("reports", begin)
        if self._step is not None:  # its batches were left out
            self._step.close()
        is_last = self._wanted.shows_last_step and 0 < state.max_steps <= state.global_step + 1
        self._step = StepInProgress()
        self._watcher.begin(is_last=is_last)
        self._watcher.containment.run(PART, self._facts.begin, self._watcher.is_measuring)
        if (optimizer := kwargs.get("optimizer")) is not None:
            with self._watcher.containment.guard("the clip"):
                self._watcher.read_before_clip(optimizer, partial(self._read, optimizer))

    def before_backward(self, loss: Tensor) -> None:
        """Take the loss of a batch, as a share of the step's."""
        step = self._step
        if step is None:
            return
        step.batches += 1
        self._watcher.containment.run(_LOSSES, step.add_loss, loss)
        if self._watcher.is_measuring and self._again is not None and self._again.inputs is not None:
            self._watcher.containment.run(PART, self._facts.look, self._again.inputs[1])
        self._watcher.expect(loss)

    def after_backward(self) -> None:
        """Search for the operation that made NaN, where the step has turned NaN on a CPU."""
        if self._step is not None and self._again is not None and self._again.inputs is not None:
            self._watcher.seek_nan(self._again, self._again.inputs)
            self._again.forget()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the gradients here if no clip was seen, before which they are read."""
        if (optimizer := kwargs.get("optimizer")) is not None:
            self._read(optimizer)

    def _read(self, optimizer: Any) -> None:
        step = self._step
        if step is None or step.was_read:
            return
        if not (self._watcher.is_measuring or self._reads_every_total):  # nearly always: no gradient is looked at
            step.was_read = True
            self._watcher.read(unwrapped(optimizer))
            return
        with self._watcher.contained():
            inner, scaler = unwrapped(optimizer), getattr(optimizer, "scaler", None)
            if scaler is not None and not (unscales_itself(inner) or has_unscaled(scaler, inner)):
                scaler.unscale_(inner)  # as its step would do now
            step.read(self._watcher, inner, scaler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the optimizer step."""
        step, self._step = self._step, None
        if step is None:
            return
        step.close()
        if self._watcher.is_measuring or self._facts.is_waiting:
            self._watcher.intake.told = self._watcher.containment.run(PART, self._facts.told) or ""
        self._watcher.end(step.loss, loss_scale=step.loss_scale, skipped=step.skipped)
        control.should_training_stop = control.should_training_stop or self._watcher.should_stop

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the memory in the checkpoint that the Trainer has just written."""
        if state.is_world_process_zero:
            self._watcher.containment.run("the memory in a checkpoint", self._save, _checkpoint(args, state))

    def _save(self, folder: Path) -> None:
        if folder.is_dir():
            torch.save(self._watcher.state_dict(), folder / _STATE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the hooks; write the pictures, the summary, the report and the end of the record."""
        self.close(quietly=False)

    def close(self, *, quietly: bool = True) -> None:
        """End the watching, also where an error has ended the training. What was recorded stays."""
        watcher, reports, step = self._watcher, self._reports, self._step
        self._reports = self._step = self._open = None
        self._facts.close()
        if self._again is not None:
            self._again.close()
            self._again = None
        if self._losses is not None:
            self._losses.close()
            self._losses = None
        if step is not None:
            step.close()
        try:
            watcher.close(quietly=quietly)
        finally:
            if reports is not None:
                watcher.containment.run("reports", reports.close, watcher)
            watcher.intake.on_snapshot, self.about = None, watcher.about
            self._watcher = watcher.containment.run("the memory of the training", copy, watcher) or self._make_blank()

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds the settings and the records; the current training stays with the original."""
        current: dict[str, Any] = dict.fromkeys(("_step", "_reports", "_losses", "_open", "_again"))
        return {**self.__dict__, **current, "_facts": Facts()}


class AddedCallback(GradwatchCallback):
    """A callback that nobody gave the Trainer: it gives way to the user's, and refuses nothing.

    Attributes:
        options: of each, as transformers makes an object of a class by itself.
    """

    options: Mapping[str, Any] = {}

    def __init__(self) -> None:
        super().__init__(**self.options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin as any; leave the Trainer where another callback watches, or its way of training is refused."""
        handler = getattr(trainer_that_calls(), "callback_handler", None)
        others = [] if handler is None else [each for each in handler.callbacks if each is not self]
        try:
            if not any(isinstance(each, GradwatchCallback) for each in others):
                return super().on_train_begin(args, state, control, **kwargs)
        except RaisedOnPurpose as error:
            say(f"this training is not watched: {error}")
        if handler is not None:
            handler.callbacks = others  # a new list: transformers goes through the old one while it calls this
        return None


def trainer_that_calls() -> Trainer | None:
    """Return the Trainer that is calling a callback now, which its events do not give; None where there is none."""
    return next((owner for owner in _owners() if isinstance(owner, Trainer)), None)


def _owners() -> Iterator[Any]:
    frame = sys._getframe(1)
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        yield frame.f_locals.get("self")


def _refuse_deepspeed(args: TrainingArguments, trainer: Any) -> None:
    kind = getattr(getattr(getattr(trainer, "accelerator", None), "distributed_type", None), "name", "")
    if kind == "DEEPSPEED" or args.deepspeed:
        raise SettingError(
            f"the Trainer trains with DeepSpeed (TrainingArguments.deepspeed). {WAY_OUT.format(what='watch')}"
        )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir), f"checkpoint-{state.global_step}")


def _memory(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    """Return the memory in the checkpoint from which a training goes on; empty for a new one, and without one."""
    if state.global_step == 0:
        return {}
    given = args.resume_from_checkpoint
    folders = [Path(given)] if isinstance(given, str) and given not in ("True", "False") else []
    for folder in [*_resumed_from(), *folders, _checkpoint(args, state)]:
        if (path := folder / _STATE).is_file():
            found: dict[str, Any] = torch.load(path, weights_only=True)
            return found
    return {}


def _resumed_from() -> Iterator[Path]:
    """Yield the folder that ``train(resume_from_checkpoint=...)`` was given; the Trainer keeps it nowhere."""
    frame = sys._getframe(1)
    with contextlib.suppress(AttributeError):
        while (frame := frame.f_back) is not None:  # type: ignore[assignment]
            given = frame.f_locals.get("resume_from_checkpoint")
            if isinstance(given, str):
                yield Path(given)
