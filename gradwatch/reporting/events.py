"""Writes events through a SummaryWriter, and drops those that the disk does not take."""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from google_crc32c import value

from gradwatch.reporting.text import plural
from gradwatch.reporting.unwritten import disk_error_in_words
from gradwatch.torch_internals import record_writer_of

_REOPEN_EVERY = 30.0  # seconds: each failing try leaves an empty file
_MASK = 0xA282EAD8  # of the record format that TensorBoard shares with TensorFlow
_LAYOUT = b"custom_scalars__config__"  # its tag, the same in all versions, as TensorBoard's reader looks for it


class EventWriter:
    """Writes events with a SummaryWriter, and counts those that are lost instead of raising the disk's errors.

    Args:
        writer: a SummaryWriter of torch or tensorboardX; it is opened again if it is closed.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._files: dict[EventFile, int] = {}  # -> the number of events it had dropped before
        self._layout: Mapping[str, Any] = {}
        self._unsent = 0
        self._error = ""
        self._reopen_from = -math.inf
        self._guard()  # early, for the events that others write before ours

    @property
    def trouble(self) -> str:
        """The events that could not be written and the reason, in words; empty where none were lost."""
        lost = self._unsent + sum(file.dropped - before for file, before in self._files.items())
        errors = [error for error in (self._error, *(file.error for file in self._files)) if error]
        dropped = f"{plural(lost, 'event')} could not be written to TensorBoard's files ({errors[-1]})" if lost else ""
        return "; ".join(filter(None, (dropped, *(file.unfinished for file in self._files))))

    def summary(self, summary: Any, step: int | None) -> None:
        """Write a Summary message."""
        self._send(lambda: self._writer.file_writer.add_summary(summary, step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self._send(lambda: self._writer.add_text(tag, text, step))

    def histogram(self, tag: str, entries: Any, step: int, bins: Any) -> None:
        """Write a histogram of some entries."""
        with np.errstate(over="ignore"):  # of the sum of squares, where a gradient explodes
            self._send(lambda: self._writer.add_histogram(tag, entries, step, bins))

    def charts(self, layout: Mapping[str, Any]) -> None:
        """Write the layout of the charts if it is new, or was lost on a disk that has room again."""
        lost = [file for file in self._files if file.layout_lost and not file.failing]
        for file in lost:
            file.layout_lost = False
        changed, self._layout = lost or layout != self._layout, layout
        if changed and self._writer.file_writer is not None:  # a closed one gets it when it is opened
            self._send(lambda: self._writer.add_custom_scalars(layout))

    def _send(self, write: Callable[[], object]) -> None:
        """Write an event, opening and guarding the writer first; all events pass here."""
        try:
            if self._open():
                self._guard()
                write()
            else:
                self._unsent += 1
        except OSError as error:
            self._unsent, self._error = self._unsent + 1, disk_error_in_words(error)

    def _open(self) -> bool:
        """Open a writer that an earlier fit closed, its new file with the layout; return True if it is open now."""
        if self._writer.file_writer is None and time.monotonic() >= self._reopen_from:
            self._reopen_from = time.monotonic() + _REOPEN_EVERY
            self._writer.add_custom_scalars(self._layout)  # any public method opens it
            self._reopen_from = -math.inf
        return self._writer.file_writer is not None

    def _guard(self) -> None:
        file = guard(self._writer)
        if file:
            self._files.setdefault(file, file.dropped)


class EventFile:
    """Writes whole records to the file of a SummaryWriter's thread, and never raises.

    TensorBoard's thread ends at the first error of its file. From then on each call of the SummaryWriter raises that
    error, also in the user's training_step. Here an event that cannot be written is dropped, and the next one is tried.
    A file on this machine is cut back to the end of its last whole record, as TensorBoard reads up to a damaged one.

    Attributes:
        dropped: number of events that could not be written.
        error: the last failure in words.
        failing: True while the last event could not be written.
        layout_lost: True where the layout of the charts, which is written once, is among what was dropped.
        unfinished: the failure of the last flush, in words; empty where it worked.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._name = _local_name(file)
        self._end: int | None = None  # of the last whole record, while a part of the next may follow it
        self.dropped = 0
        self.error = ""
        self.failing = False
        self.layout_lost = False
        self.unfinished = ""

    def write(self, data: bytes) -> None:
        """Write an event, or drop it."""
        try:
            self._cut_back()
            self._end = self._size()
            self._file.write(framed(data))
        except Exception as error:  # an OSError on this machine; other file systems raise their own kinds
            self.dropped, self.error, self.failing = self.dropped + 1, disk_error_in_words(error), True
            self.layout_lost = self.layout_lost or _LAYOUT in data
            with suppress(OSError):
                self._cut_back()
        else:
            self._end, self.failing = None, False

    def flush(self) -> None:
        """Flush the file, which uploads it where it is a remote one."""
        self._finish(self._file.flush)

    def close(self) -> None:
        """Close the file."""
        self._finish(self._file.close)

    def _finish(self, function: Callable[[], object]) -> None:
        try:
            function()
            self.unfinished = ""
        except Exception as error:
            self.unfinished = f"the end of TensorBoard's file may be missing ({disk_error_in_words(error)})"

    def _size(self) -> int:
        with suppress(FileNotFoundError):  # a remote one, or one that was removed
            return os.path.getsize(self._name)
        return 0

    def _cut_back(self) -> None:
        if self._end is not None and os.path.exists(self._name):
            os.truncate(self._name, self._end)
        self._end = None


def guard(writer: Any) -> EventFile | None:
    """Let a SummaryWriter's thread write through an :class:`EventFile`, and return it; only this writer is changed.

    Where TensorBoard is built otherwise than expected, nothing is changed and None is returned. A full disk then still
    ends TensorBoard's thread, and checksums are computed in Python.
    """
    found = record_writer_of(writer)
    if found is None:
        return None
    record, inner = found
    known = getattr(vars(record).get("write"), "__self__", None)
    if isinstance(known, EventFile):
        return known
    file = EventFile(inner)
    record.write, record.flush, record.close = file.write, file.flush, file.close
    return file


def framed(data: bytes) -> bytes:
    """Return an event as a record: its length, itself, and a checksum of each.

    TensorBoard computes the checksums in Python, byte by byte: 3 ms for an event of 520 values, for which the training
    waits, as both share the interpreter.
    """
    length = struct.pack("<Q", len(data))
    return length + _checksum(value(length)) + data + _checksum(value(data))


def _checksum(crc: int) -> bytes:
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF)


def _local_name(file: Any) -> str:
    """Return the name of a file on this machine; empty for a remote one."""
    # TensorBoard's own GFile has `fs` and `filename`, in bytes, in 2.15 to 2.21; TensorFlow's, which TensorBoard takes
    # where it is installed, has no `fs`. Without them a part of a record may stay in the file.
    is_local = type(getattr(file, "fs", None)).__name__ == "LocalFileSystem"
    return os.fsdecode(getattr(file, "filename", "")) if is_local else ""
