"""Opening a record for more lines."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import BinaryIO

_START = b'{"type": "'  # of every line of a record
_BLOCK = 1 << 16  # bytes


def open_at_last_line(path: Path) -> FileIO:
    r"""Open a record for more lines: half a line at its end is cut off; a file that is no record is refused.

    Raises:
        OSError: when it cannot be opened.
        ValueError: when it is no record.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gradwatch.jsonl"
        >>> _ = path.write_text('{"type": "remark"}\n{"type": "sna')
        >>> open_at_last_line(path).close()
        >>> path.read_text()
        '{"type": "remark"}\n'
    """
    if path.exists() and path.stat().st_size:
        with path.open("r+b") as file:
            if not _START.startswith(file.read(len(_START))):
                raise ValueError(f"{path} exists and is no record of gradwatch; give another path, or move it away")
            file.truncate(_end_of_last_line(file))
    return path.open("ab", buffering=0)


def _end_of_last_line(file: BinaryIO) -> int:
    """Find the last line break by reading backwards; a map of the file would kill the process where the disk fails."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def write_some(file: FileIO, content: bytes) -> int:
    """Write as many bytes as the disk takes, and return their number; raise an OSError where it takes none."""
    written = file.write(content)
    if not written:  # a caller that goes on until all is written would not end
        raise OSError("the file takes no more bytes")
    return written
