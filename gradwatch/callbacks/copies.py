"""Finds the run of a monitor that was copied: libraries copy callbacks, or train in a process of their own."""

from __future__ import annotations

import json
import os
import tempfile
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from gradwatch.diagnosis import diagnose
from gradwatch.reporting.reading import Record, read_record
from gradwatch.reporting.record_files import local_path, remote_url

_LATEST: dict[str, tuple[float, str]] = {}  # key of a lineage -> time and record of its last fit in this process


class Lineage:
    """A monitor and all its copies, deep, shallow or pickled: where the last fit of any of them is recorded.

    Within a process the place is kept in memory. A process that was started from the monitor's own leaves it in a file
    in the folder for temporary files, which is removed with the monitor.

    Example:
        >>> from copy import deepcopy
        >>> original = Lineage()
        >>> original.last
        ''
        >>> deepcopy(original).note("runs/gradwatch.jsonl")
        >>> Path(original.last) == Path("runs/gradwatch.jsonl").absolute()
        True
    """

    def __init__(self) -> None:
        self._key, self._home = uuid4().hex, os.getpid()
        weakref.finalize(self, _forget, self._key, self._home)

    @property
    def last(self) -> str:
        """The record of the last fit; empty where there was none, or it wrote none."""
        known = [_LATEST[self._key]] if self._key in _LATEST else []
        with suppress(OSError, ValueError):  # none, or half of one
            when, place = json.loads(_note_file(self._key).read_text(encoding="utf-8"))
            known.append((when, place))
        return max(known)[1] if known else ""

    def note(self, record: str | Path | None) -> None:
        """Note the record of a fit that begins; None where none is written."""
        place = "" if record is None else remote_url(record) or str(local_path(record).absolute())
        latest = _LATEST[self._key] = (time.time(), place)
        if os.getpid() != self._home:
            with suppress(OSError):  # a full disk: the record is there all the same
                _note_file(self._key).write_text(json.dumps(latest), encoding="utf-8")


def read_run(place: str) -> Record:
    """Read a record with its causes, which are worked out where the run goes on or was killed."""
    record = read_record(place)
    if record.diagnoses is None:
        record = replace(record, diagnoses=diagnose(record.findings, record.snapshots))
    return record


def _note_file(key: str) -> Path:
    return Path(tempfile.gettempdir(), f"gradwatch-{key}.json")


def _forget(key: str, home: int) -> None:
    if os.getpid() == home:
        _LATEST.pop(key, None)
        with suppress(OSError):
            _note_file(key).unlink()
