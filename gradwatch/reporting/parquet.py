"""The record of a large model as Parquet: a folder of finished parts, and the latest lines as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.containment import OutOfService
from gradwatch.plain_values import DAMAGE
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.reading import LATEST, PART, pyarrow_parquet, read_record
from gradwatch.reporting.record import JsonlRecord
from gradwatch.reporting.record_files import remote_url
from gradwatch.reporting.unwritten import disk_error_in_words
from gradwatch.snapshot import ARRAYS

__all__ = ["ParquetRecord", "open_record", "read_record"]

_PART_BYTES = 64 * 2**20  # of JSON, from which a part is made: about 40 lines of 10,000 layers, and a second of work
_DIGITS = -(1 << 29)  # keeps 24 of 53 bits of a number, as float32 has: seven digits, and the range of float64


class ParquetRecord:
    """Writes Snapshots and Findings into a folder of Parquet files, as :class:`JsonlRecord` does into one of JSON.

    A Parquet file can be read only once its end is written, so a run that is killed would lose all of it. Here the
    latest lines are JSON, as safe as in a JsonlRecord. From 64 MiB on they become a part, which is written beside,
    reaches the disk, and gets its name at once; then the lines are removed. A run that is killed in between leaves
    both, and :func:`read_record` takes each step once. At the end the rest becomes the last part.

    ==========================  ================================================================================
    file in the folder          content
    ==========================  ================================================================================
    ``part-00001.parquet``      a row for each line of JSON: its text as ``line``, and a list of numbers for each column
    ``latest.jsonl``            the lines that are in no part yet
    ==========================  ================================================================================

    Numbers have seven digits. What the disk does not take stays in ``latest.jsonl``, and is tried again.

    Args:
        path: the folder, whose name ends in ``.parquet``; an existing one is continued.
        part_bytes: of JSON, from which a part is made.

    Attributes:
        path: the folder.

    Raises:
        ValueError: for a URL.
        ImportError: when pyarrow is not installed.
        OSError: when the folder cannot be made.

    Example:
        >>> import tempfile
        >>> record = ParquetRecord(tempfile.mkdtemp() + "/run.parquet")
        >>> record.snapshot(Snapshot(0, ("fc",), grad_norm=[0.5]))
        >>> record.close()
        >>> sorted(os.listdir(record.path)), read_record(record.path).snapshots[0].grad_norm
        (['part-00001.parquet'], array([0.5]))
    """

    def __init__(self, path: str | Path, part_bytes: int = _PART_BYTES) -> None:
        if remote_url(path):
            raise ValueError(
                f"{path} is remote, where no part can be renamed; expected a path here, or one to a .jsonl"
            )
        pyarrow_parquet()
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._part_bytes = self._due = part_bytes
        self._error, self._lost_before = "", 0
        self._latest = self._open()

    def _open(self) -> JsonlRecord:
        return JsonlRecord(self.path / LATEST, most_bytes=1 << 62)

    @property
    def lost(self) -> int:
        """Number of Snapshots and Findings that could not be written."""
        return self._lost_before + self._latest.lost

    @property
    def trouble(self) -> str:
        """The lines that are missing, or in no part, and the reason, in words; empty where there are none."""
        return "; ".join(filter(None, (self._latest.trouble, self._error)))

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write a Snapshot, and make a part where there are enough lines."""
        self._latest.snapshot(snapshot)
        if self._latest.size >= self._due:
            self._make_part()

    def finding(self, finding: Finding) -> None:
        """Write a Finding that has opened or closed."""
        self._latest.finding(finding)

    def about(self, settings: Mapping[str, str], modules: Mapping[str, str]) -> None:
        """Write the run's settings, and the classes of its modules."""
        self._latest.about(settings, modules)

    def diagnoses(self, diagnoses: Sequence[Diagnosis]) -> None:
        """Write the causes of all findings."""
        self._latest.diagnoses(diagnoses)

    def out_of_service(self, failure: OutOfService) -> None:
        """Write that a part of the watching failed and was switched off."""
        self._latest.out_of_service(failure)

    def close(self) -> None:
        """Make the last part; may be called twice."""
        self._latest.close()
        if (self.path / LATEST).exists():
            self._compact()

    def _make_part(self) -> None:
        self._latest.close()
        self._due = self._part_bytes if self._compact() else 2 * self._latest.size
        self._lost_before = self.lost
        self._latest = self._open()

    def _compact(self) -> bool:
        """Turn the latest lines into a part; return False where that fails, which leaves them as they are."""
        number = max((int(path.stem.removeprefix(PART)) for path in self.path.glob(f"{PART}*.parquet")), default=0) + 1
        written = self.path / f"{PART}{number:05}.parquet"
        beside = written.with_suffix(".part")
        try:
            lines = (self.path / LATEST).read_bytes().splitlines()
            if lines:
                _write(beside, lines)
                beside.replace(written)
            (self.path / LATEST).unlink()
        except Exception as error:  # pyarrow raises its own kinds
            self._error = f"the latest lines of {self.path} are in no part ({disk_error_in_words(error)})"
            with suppress(OSError):
                beside.unlink()
            return False
        self._error = ""
        return True


def open_record(path: str | Path) -> JsonlRecord | ParquetRecord:
    """Open a record to be written: in Parquet where the path ends in ``.parquet``, else in JSON."""
    return ParquetRecord(path) if str(path).endswith(".parquet") else JsonlRecord(path)


def _write(path: Path, lines: Sequence[bytes]) -> None:
    """Write lines as rows, and wait until they are on the disk."""
    parquet = pyarrow_parquet()
    import pyarrow

    rows = [row for row in map(_row, lines) if row is not None]
    columns = [name for name in ARRAYS if any(name in numbers for _, numbers in rows)]
    numbers = pyarrow.list_(pyarrow.float64())
    table = {name: pyarrow.array([row.get(name) for _, row in rows], numbers) for name in columns}
    settings: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
    # The first bytes of all numbers, then their second bytes, and so on: those of like numbers are alike.
    settings["column_encoding"] = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in columns}
    with path.open("wb") as file:
        parquet.write_table(pyarrow.table({"line": [line for line, _ in rows], **table}), file, **settings)
        file.flush()
        os.fsync(file.fileno())


def _row(text: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return a line without its columns, and these; None for half a line, of a disk that was full."""
    try:
        line = json.loads(text)
        own = ARRAYS if line["type"] == "snapshot" else {}
        numbers = {name: _rounded(line.pop(name)) for name in own if name in line}
    except DAMAGE:
        return None
    return json.dumps(line), numbers


def _rounded(values: Sequence[Any]) -> Any:
    """Return numbers whose lower bits are zero, which takes half of the room."""
    bits = np.array(values, np.float64).view(np.int64)
    return (bits & _DIGITS).view(np.float64)
