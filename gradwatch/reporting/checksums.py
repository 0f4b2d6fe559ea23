"""The records of TensorBoard's event files, with checksums that are computed in C."""

from __future__ import annotations

import struct

from google_crc32c import value

_MASK = 0xA282EAD8  # of the record format that TensorBoard shares with TensorFlow


def framed(data: bytes) -> bytes:
    """Return an event as a record: its length, itself, and a checksum of each.

    TensorBoard computes the checksums in Python, byte by byte: 3 ms for an event of 520 values, for which the training
    waits as both share the interpreter.

    Example:
        >>> len(framed(b"an event")) - len(b"an event")
        16
    """
    length = struct.pack("<Q", len(data))
    return length + _checksum(value(length)) + data + _checksum(value(data))


def _checksum(crc: int) -> bytes:
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF)
