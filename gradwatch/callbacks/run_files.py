"""The files of a fit: where its record and its report are written, one of each for a run, with any logger."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import Any, Literal

from lightning.pytorch import Trainer

from gradwatch.callbacks.trainer_checks import has_class_named
from gradwatch.reporting.record_files import claim, names_in

_NAME = "gradwatch"
_NUMBERED = re.compile(rf"{_NAME}(?:-(\d+))?\.jsonl")
_FOLDER_OF_NO_LOGGER = "gradwatch_logs"  # in the Trainer's folder


@dataclass(frozen=True)
class Wanted:
    """The files and texts that a fit is asked for.

    Attributes:
        record_path: of the JSONL record; None takes one in the run's folder, False writes none.
        summary: print the table of layers and findings at the end.
        report: write the report at the end: a path, or True for one beside the record.
    """

    record_path: str | Path | Literal[False] | None = None
    summary: bool = True
    report: bool | str | Path = False

    @property
    def shows_last_step(self) -> bool:
        """Return True if the last step is worth being measured on purpose."""
        return self.summary or bool(self.report)


def record_place(trainer: Trainer, wanted: Wanted, *, resumes: bool) -> str | Path | None:
    """Return the path of the record; None where none is to be written.

    A path that was given is taken as it is: JsonlRecord continues a file that is there. By default a run that goes on
    continues its file, and another run in the same folder gets a file of its own.
    """
    if wanted.record_path is not None:
        return wanted.record_path or None
    folder = run_folder(trainer)
    if not folder:
        return None
    taken = [int(found[1] or 1) for name in names_in(folder) if (found := _NUMBERED.fullmatch(name))]
    latest = max(taken, default=0)
    if resumes:
        return _numbered(folder, max(latest, 1))
    paths = (_numbered(folder, number) for number in count(latest + 1))
    return next(path for path in paths if claim(path))


def _numbered(folder: str, number: int) -> str:
    return f"{folder}/{_NAME}{'' if number == 1 else f'-{number}'}.jsonl"


def run_folder(trainer: Trainer) -> str:
    """Return the folder of the run, which is that of its checkpoints; empty where a Trainer writes nothing.

    It follows the first logger, as Lightning does. A logger that keeps nothing on this machine, such as MLflow's with a
    server, has one in the Trainer's folder. It may be remote (``s3://...``).
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return ""
    if not trainer.loggers:
        return f"{trainer.default_root_dir}/{_FOLDER_OF_NO_LOGGER}"
    logger: Any = trainer.loggers[0]
    if has_class_named(logger, "DummyLogger"):
        return ""
    if has_class_named(logger, "TensorBoardLogger") or has_class_named(logger, "CSVLogger"):
        return str(logger.log_dir)
    version = logger.version
    named = version if isinstance(version, str) else f"version_{version}"
    return os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), named)


def report_place(trainer: Trainer, wanted: Wanted, record: str | Path | None) -> str | Path | None:
    """Return the path of the report, beside the record where none is given; None where none is wanted."""
    if wanted.report is True:
        return beside(record or f"{trainer.default_root_dir}/{_NAME}.jsonl")
    return wanted.report or None


def beside(record: str | Path) -> str:
    """Return the path of the report of a record, which may be remote.

    Example:
        >>> beside("s3://bucket/run.jsonl")
        's3://bucket/run.html'
    """
    text = record.as_posix() if isinstance(record, PurePath) else str(record)
    return f"{text.removesuffix('.jsonl')}.html"
