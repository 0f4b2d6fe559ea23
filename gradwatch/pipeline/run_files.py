"""The files of a run: the record and the report that are asked for, and free names for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import Literal

from gradwatch.reporting.record_files import claim, names_in

_NAME = "gradwatch"
_NUMBERED = re.compile(rf"{_NAME}(?:-(\d+))?\.jsonl")


@dataclass(frozen=True)
class Wanted:
    """The files and texts that a fit is asked for.

    Attributes:
        record_path: of the record, JSONL or (a folder) ``.parquet``; None takes one of JSONL in the run's folder, False
            writes none.
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

    def record_in(self, folder: str, *, resumes: bool) -> str | Path | None:
        """Return the path of the record; None where none is to be written.

        A path that was given is taken as it is: a record that is there is continued. By default a run that goes
        on continues its file, and another run in the same folder gets a file of its own.

        Args:
            folder: of the run, maybe remote; empty for none.
            resumes: the run goes on where an earlier one stopped.
        """
        if self.record_path is not None:
            return self.record_path or None
        return _record_in(folder, resumes=resumes) if folder else None

    def report_beside(self, record: str | Path | None, folder: str) -> str | Path | None:
        """Return the path of the report, beside the record where none is given; None where none is wanted."""
        if self.report is True:
            return beside(record or f"{folder}/{_NAME}.jsonl")
        return self.report or None


def _record_in(folder: str, *, resumes: bool) -> str:
    taken = [int(found[1] or 1) for name in names_in(folder) if (found := _NUMBERED.fullmatch(name))]
    latest = max(taken, default=0)
    if resumes:
        return _numbered(folder, max(latest, 1))
    paths = (_numbered(folder, number) for number in count(latest + 1))
    return next(path for path in paths if claim(path))


def _numbered(folder: str, number: int) -> str:
    return f"{folder}/{_NAME}{'' if number == 1 else f'-{number}'}.jsonl"


def beside(record: str | Path) -> str:
    """Return the path of the report of a record, which may be remote.

    Example:
        >>> beside("s3://bucket/run.jsonl")
        's3://bucket/run.html'
    """
    text = record.as_posix() if isinstance(record, PurePath) else str(record)
    return f"{text.removesuffix('.jsonl').removesuffix('.parquet')}.html"
