"""TensorBoard's event file, made quick, and able to outlast a full disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gradwatch.reporting.checksums import framed
from gradwatch.reporting.losses import in_words

_RECORDS = "tensorboard.summary.writer.record_writer"
_LAYOUT = b"custom_scalars__config__"  # its tag, the same in all versions, as TensorBoard's reader looks for it


class EventFile:
    """Writes whole records to the file of a SummaryWriter's thread, and never raises.

    TensorBoard's thread ends at the first error of its file, and from then on each call of the SummaryWriter raises
    that error. Here an event that cannot be written is dropped and counted, and the next one is tried again. A file on
    this machine is cut back to the end of its last whole record, as TensorBoard reads no further than a damaged one.

    Args:
        file: TensorBoard's file.

    Attributes:
        dropped: how many events could not be written.
        error: the last failure in words.
        failing: True while the last event could not be written.
        layout_lost: True where the layout of the charts, which is written once, is among what was dropped.
        unfinished: the failure of the last flush, in words; empty where it worked.

    Example:
        >>> from io import BytesIO
        >>> file = EventFile(BytesIO())
        >>> file.write(b"an event")
        >>> file.dropped
        0
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._name = _local_name(file)
        self._end: int | None = None  # of the last whole record, while a part of the next may stand behind it
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
            self.dropped, self.error, self.failing = self.dropped + 1, in_words(error), True
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
            self.unfinished = f"the end of TensorBoard's file may be missing ({in_words(error)})"

    def _size(self) -> int:
        with suppress(FileNotFoundError):  # a remote one, or one that was removed
            return os.path.getsize(self._name)
        return 0

    def _cut_back(self) -> None:
        if self._end is not None and os.path.exists(self._name):
            os.truncate(self._name, self._end)
        self._end = None


def guard(writer: Any) -> EventFile | None:
    """Let a SummaryWriter's thread write through an :class:`EventFile`, and return it.

    Only this writer is changed. It is made of private parts of TensorBoard; where they are otherwise, as in
    tensorboardX, nothing is changed and None is returned: then a full disk still ends TensorBoard's thread.

    Example:
        >>> guard(object()) is None
        True
    """
    record = _record_writer(writer)
    if type(record).__module__ != _RECORDS:
        return None
    known = getattr(vars(record).get("write"), "__self__", None)
    if isinstance(known, EventFile):
        return known
    # `_writer` is RecordWriter's file, seen in TensorBoard 2.15 to 2.21. Where it is missing nothing is changed.
    inner = getattr(record, "_writer", None)
    if inner is None:
        return None
    file = EventFile(inner)
    record.write, record.flush, record.close = file.write, file.flush, file.close
    return file


def _record_writer(writer: Any) -> Any:
    """Return what the thread of a SummaryWriter writes its records with; None where it is built otherwise."""
    # `file_writer` and its `event_writer` are attributes of torch's SummaryWriter, seen in torch 2.13, and the
    # first is None once it is closed. The others are private, and the same in TensorBoard 2.15 to 2.21: EventFileWriter
    # holds an _AsyncWriter, which holds the thread, which holds the RecordWriter.
    part = writer
    for name in ("file_writer", "event_writer", "_async_writer", "_worker", "_record_writer"):
        part = getattr(part, name, None)
    return part


def _local_name(file: Any) -> str:
    """Return the name of a file on this machine; empty for a remote one."""
    # TensorBoard's own GFile has `fs` and `filename`, in bytes, in 2.15 to 2.21; TensorFlow's, which TensorBoard takes
    # where it is installed, has no `fs`. Without them a part of a record may stay in the file.
    is_local = type(getattr(file, "fs", None)).__name__ == "LocalFileSystem"
    return os.fsdecode(getattr(file, "filename", "")) if is_local else ""
