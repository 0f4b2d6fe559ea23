"""Appends lines to a file, also where its disk is full for a while."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from gradwatch.reporting.appending import open_at_last_line, write_some
from gradwatch.reporting.losses import Gap, in_words

_MOST_WAITING = 1 << 20  # bytes
_WAITS = 1.0  # seconds; to flush every line cost 1.2 ms of a step's 10 ms where files are slow


class Line(NamedTuple):
    """One line of a record, with its line break.

    Attributes:
        content: the line as bytes.
        kind: its type: ``header``, ``snapshot``, ``finding``, ``lost`` or ``out_of_service``.
        step: the optimizer step to which it belongs.
    """

    content: bytes
    kind: str
    step: int


class LineFile:
    """Appends lines to a file, and never raises because of its disk once it is open.

    Lines wait in memory for up to a second. Those that the disk does not take are dropped and counted, and the file is
    cut back to the end of its last whole line. The next lines are tried again. When one reaches the file, a line of
    type ``lost`` goes before it, and then the latest header, which may be among what was lost.

    Args:
        path: the file; an existing one is continued.
        name: where the record is, for messages.

    Raises:
        OSError: when the file cannot be opened.
        ValueError: when the file exists and is no record.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gradwatch.jsonl"
        >>> lines = LineFile(path, str(path))
        >>> lines.add('{"type": "snapshot", "step": 0}', "snapshot", 0)
        >>> lines.close()
        >>> path.read_text().splitlines(), lines.lost, lines.trouble
        (['{"type": "snapshot", "step": 0}'], 0, '')
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._file: FileIO | None = open_at_last_line(path)
        self._closed = False
        self._waiting: list[Line] = []
        self._size = 0
        self._flushed = float("-inf")
        self._header: Line | None = None
        self._failed = False
        self._gap = Gap()  # lost since the file was last told of it
        self._all_lost = Gap()
        self._error = ""
        self._error_at_close = ""

    @property
    def lost(self) -> int:
        """Number of Snapshots and Findings that could not be written."""
        return self._all_lost.lines

    @property
    def trouble(self) -> str:
        """What was lost and why, in words; empty where nothing was."""
        lost = f"{self._all_lost} could not be written to {self._name} ({self._error})" if self.lost else ""
        late = f"the last lines of {self._name} may be missing ({self._error_at_close})" if self._error_at_close else ""
        return "; ".join(filter(None, (lost, late)))

    def add(self, text: str, kind: str, step: int, *, at_once: bool = False) -> None:
        """Add a line; write it now if it may not wait, or if the last writing is more than a second ago.

        Raises:
            ValueError: when the file was closed.
        """
        if self._closed:
            raise ValueError(f"{self._name} is closed; open it again to add lines")
        content = text.encode() + b"\n"
        self._waiting.append(Line(content, kind, step))
        self._size += len(content)
        due = kind != "header" and time.monotonic() - self._flushed > _WAITS  # a header waits for its snapshot
        if at_once or due or self._size > _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write all lines that wait."""
        self._flushed = time.monotonic()
        if not (self._waiting or self._gap.lines):
            return
        first = list(self._told_first())
        lines = [*first, *self._waiting]
        self._waiting, self._size = [], 0
        written = self._append(b"".join(line.content for line in lines))
        whole = _whole_lines(lines, written)
        if whole < len(lines):
            whole = 0 if whole <= len(first) else whole  # a gap is not over while no line after it is in the file
            self._cut_back(written - sum(len(line.content) for line in lines[:whole]))
        self._settle(lines, whole)

    def close(self) -> None:
        """Write what waits and close the file; may be called twice."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        try:
            if self._file:
                self._file.close()
        except OSError as error:  # a network's file system may tell of a full disk only now
            self._error_at_close = in_words(error)

    def _told_first(self) -> Iterable[Line]:
        """Yield what has to stand before the first line after a failure."""
        if self._gap.lines:
            yield Line(self._gap.as_json().encode() + b"\n", "lost", self._gap.last_step)
        if self._failed and self._header:
            yield self._header

    def _append(self, content: bytes) -> int:
        """Write as much as the disk takes; return how many bytes it took."""
        written = 0
        try:
            self._file = self._file or open_at_last_line(self._path)
            while written < len(content):  # on a disk that is nearly full a part is written first
                written += write_some(self._file, content[written:] if written else content)
        except (OSError, ValueError) as error:  # ValueError: something else stands in the file's place by now
            self._error = in_words(error)
        return written

    def _cut_back(self, excess: int) -> None:
        """Cut off what was written last, and open the file anew, which helps where the disk was mounted anew."""
        with suppress(OSError):
            if self._file:
                self._file.truncate(self._file.tell() - excess)
        with suppress(OSError):
            if self._file:
                self._file.close()
        self._file = None
        with suppress(OSError, ValueError):
            self._file = open_at_last_line(self._path)

    def _settle(self, lines: Sequence[Line], whole: int) -> None:
        """Count the lines that are not in the file; those that must not be missing wait for the next time."""
        self._failed = whole < len(lines)
        for place, line in enumerate(lines):
            if line.kind == "header":
                self._header = line
            elif line.kind == "lost":
                self._gap = self._gap if place >= whole else Gap()
            elif place >= whole:
                self._lose(line)

    def _lose(self, line: Line) -> None:
        if line.kind in ("snapshot", "finding"):
            self._gap = self._gap.widened(line.kind, line.step)
            self._all_lost = self._all_lost.widened(line.kind, line.step)
        else:
            self._waiting.append(line)


def _whole_lines(lines: Iterable[Line], written: int) -> int:
    """Return how many of some lines the first so many bytes hold."""
    ends = accumulate(len(line.content) for line in lines)
    return sum(end <= written for end in ends)
