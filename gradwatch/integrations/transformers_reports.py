"""Places that Hugging Face's Trainer writes a run to: its folder and those of ``report_to``, with its settings."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from gradwatch.pipeline.about import length_in_words, processes, settings_of_run
from gradwatch.pipeline.optimizer_step import unwrapped
from gradwatch.pipeline.reports import Places
from gradwatch.pipeline.run_files import Wanted
from gradwatch.pipeline.watcher import Watcher
from gradwatch.records import Snapshot
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.loggers import AnyLogger, Wandb
from gradwatch.reporting.sink import Sink
from gradwatch.reporting.tensorboard import TensorBoardReport

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "gradwatch")


def places_of(args: TrainingArguments, state: TrainerState, trainer: Any, wanted: Wanted, *, resumes: bool) -> Places:
    """Return the places that a training writes to.

    Args:
        args: of the training.
        state: of the training.
        trainer: whose reporting callbacks are written to, as they are once the training has begun; None for none.
        wanted: the files and texts that are asked for.
        resumes: the run goes on where an earlier one stopped, and so does its record.
    """
    folder = str(args.output_dir)
    record = wanted.record_in(folder, resumes=resumes)
    callbacks = trainer.callback_handler.callbacks if trainer is not None else []
    boards = [each.tb_writer for each in callbacks if type(each).__name__ == "TensorBoardCallback" and each.tb_writer]
    return Places(
        record=record,
        report=wanted.report_beside(record, folder),
        summary=wanted.summary,
        sinks=dict(_sinks(callbacks, args, state)),
        settings=partial(_settings, args, state, trainer),
        close=partial(_close, boards),
    )


def _sinks(
    callbacks: list[Any], args: TrainingArguments, state: TrainerState
) -> Iterator[tuple[str, Callable[[], Sink]]]:
    reporting = tuple(INTEGRATION_TO_CALLBACK.values())
    callbacks = [callback for callback in callbacks if isinstance(callback, reporting)]
    for callback in callbacks:
        name = type(callback).__name__
        if name == "TensorBoardCallback":
            if callback.tb_writer is not None:
                yield f"TensorBoard in {callback.tb_writer.log_dir}", partial(TensorBoardReport, callback.tb_writer)
        elif name == "WandbCallback" and getattr(callback._wandb, "run", None) is not None:
            yield name, partial(_wandb, callback._wandb)
        else:
            yield name, partial(Reporting, callback, args, state)


def _close(boards: list[Any]) -> None:
    """Close the SummaryWriters again: the Trainer closes them first, and the last texts have opened them anew."""
    for writer in boards:
        writer.close()


class Reporting(AnyLogger):
    """Gives a reporting callback of the Trainer the numbers, as the Trainer's own ``log`` does.

    Args:
        callback: one of ``report_to``.
        args, state: of the training; the callback takes the step from the state.
    """

    def __init__(self, callback: Any, args: TrainingArguments, state: TrainerState) -> None:
        super().__init__(callback)
        self._args, self._state = args, weakref.ref(state)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write the numbers."""
        state = self._state()
        if state is not None:
            self._logger.on_log(self._args, state, _NoControl(), logs=scalars(snapshot))


class _NoControl:
    """Stands for the control of a training, which a report has no business with."""


class _WandbRun:
    """Gives a run of Weights & Biases, which Hugging Face's callback has begun, the methods of Lightning's logger."""

    def __init__(self, wandb: Any) -> None:
        self._wandb, self.experiment = wandb, wandb.run

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        # Hugging Face's callback draws everything over this key; the step of wandb itself counts the calls.
        self.experiment.log({**values, **({} if step is None else {"train/global_step": step})})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._log(metrics, step)

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        self._log({key: self._wandb.Table(columns=columns, data=data)}, step)

    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        self._log({key: [self._wandb.Image(path) for path in images]}, step)


def _wandb(wandb: Any) -> Sink:
    return Wandb(_WandbRun(wandb))


def _settings(args: TrainingArguments, state: TrainerState, trainer: Any, watcher: Watcher) -> Mapping[str, str]:
    """Return the settings of a run by name, as short texts."""
    own = {
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "batch size": f"{args.per_device_train_batch_size} per device",
        "accumulated batches": str(args.gradient_accumulation_steps) if args.gradient_accumulation_steps != 1 else "",
        "gradient clip": f"{args.max_grad_norm} by norm" if args.max_grad_norm else "",
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "",
        "devices": processes(args.world_size, args.device.type.upper()),
        "length": length_in_words(-1, state.max_steps),
    }
    optimizers = [] if trainer is None else [unwrapped(trainer.optimizer)]
    model = trainer.model if trainer is not None else None
    return settings_of_run(model, optimizers, watcher, own, _PACKAGES) if model is not None else own
