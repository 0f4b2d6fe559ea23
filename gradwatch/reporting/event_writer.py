"""Hands events to a SummaryWriter that may be closed, or whose disk may be full."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradwatch.reporting.event_file import EventFile, guard
from gradwatch.reporting.losses import counted, in_words

_REOPEN_EVERY = 30.0  # seconds: each failing try leaves an empty file


class EventWriter:
    """Writes events with a SummaryWriter, and counts those that are lost instead of raising the disk's errors.

    Args:
        writer: a SummaryWriter of torch or tensorboardX; it is opened again if it is closed.

    Example:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> writer = SummaryWriter(tempfile.mkdtemp())
        >>> writer.close()
        >>> events = EventWriter(writer)
        >>> events.text("note", "hello", step=0)
        >>> events.trouble
        ''
        >>> writer.close()
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._files: dict[EventFile, int] = {}  # with how many events it had dropped when it was first seen
        self._layout: Mapping[str, Any] = {}
        self._unsent = 0
        self._error = ""
        self._reopen_from = -math.inf
        self._guard()  # early, for the events that others write before ours

    @property
    def trouble(self) -> str:
        """What could not be written and why, in words; empty where nothing was lost."""
        lost = self._unsent + sum(file.dropped - before for file, before in self._files.items())
        errors = [error for error in (self._error, *(file.error for file in self._files)) if error]
        dropped = f"{counted(lost, 'event')} could not be written to TensorBoard's files ({errors[-1]})" if lost else ""
        return "; ".join(filter(None, (dropped, *(file.unfinished for file in self._files))))

    def summary(self, summary: Any, step: int) -> None:
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
        """Write an event; all events pass here."""
        try:
            if self._open():
                self._guard()
                write()
            else:
                self._unsent += 1
        except OSError as error:
            self._unsent, self._error = self._unsent + 1, in_words(error)

    def _open(self) -> bool:
        """Open a writer that was closed, as after an earlier fit; its new file begins with the layout."""
        if self._writer.file_writer is None and time.monotonic() >= self._reopen_from:
            self._reopen_from = time.monotonic() + _REOPEN_EVERY
            self._writer.add_custom_scalars(self._layout)  # any public method opens it
            self._reopen_from = -math.inf
        return self._writer.file_writer is not None

    def _guard(self) -> None:
        file = guard(self._writer)
        if file:
            self._files.setdefault(file, file.dropped)
