"""TensorBoard's event files with checksums that are computed in C."""

from __future__ import annotations

import struct
from typing import Any

from google_crc32c import value

_MASK = 0xA282EAD8  # of the record format that TensorBoard shares with TensorFlow


def quicken(writer: Any) -> None:
    """Let a SummaryWriter's thread take the checksums of its records in C.

    TensorBoard takes them in Python, byte by byte: 3 ms for an event of 520 values, for which the training waits as
    both share the interpreter. Only this writer is changed. What it is made of is private: where it is otherwise,
    nothing is.

    Example:
        >>> quicken(object())
    """
    queue = getattr(getattr(getattr(writer, "file_writer", None), "event_writer", None), "_async_writer", None)
    worker = getattr(queue, "_worker", None)
    record = getattr(worker, "_record_writer", None)
    if type(record).__module__ != "tensorboard.summary.writer.record_writer" or "write" in vars(record):
        return
    file: Any = record._writer  # type: ignore[union-attr]

    def write(data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        file.write(length + _checksum(value(length)) + data + _checksum(value(data)))

    record.write = write  # type: ignore[union-attr] # which it has, as its class is known


def _checksum(crc: int) -> bytes:
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF)
