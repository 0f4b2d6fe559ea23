"""A record of a run as lines of JSON, to be read without TensorBoard."""

from __future__ import annotations

import json
import math
import mmap
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.records import Array, Finding, Snapshot
from gradwatch.reporting.reading import ARRAYS, FORMAT, NAMES, NUMBERS, VERSION, WORDS, read_record

__all__ = ["JsonlRecord", "read_record"]

_START = b'{"type": "'
_BUFFER = 1 << 20  # bytes
_WAITS = 1.0  # seconds


class JsonlRecord:
    """Writes Snapshots and Findings, one JSON object a line.

    A line is on its way to the disk at once; only a Snapshot that comes within a second of another waits for the next
    line, or the end.

    A line's ``type`` is ``header`` (the names of layers and parameters, so that snapshots need not repeat them),
    ``snapshot`` (the fields of a Snapshot; columns without a value are left out) or ``finding`` (when it opens, and
    again when it closes). It is strict JSON: no value is ``null``, non-finite is ``"inf"``. Numbers have six digits.

    A file that exists is gone on with, as a resumed run expects; half a line that a killed run left is cut off. When
    the steps start again at an earlier one, :func:`read_record` takes what was written last.

    Args:
        path: where to write; missing folders are made.

    Raises:
        ValueError: when the file exists and is no such record.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gradwatch.jsonl"
        >>> record = JsonlRecord(path)
        >>> record.snapshot(Snapshot(0, ("fc",), grad_norm=[0.5], params=("fc.weight",), param_grad_norm=[0.5]))
        >>> record.close()
        >>> print(path.read_text().splitlines()[1])
        {"type": "snapshot", "step": 0, "grad_norm": [0.5], "param_grad_norm": [0.5]}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _mend(self.path)
        self._file = self.path.open("ab", buffering=_BUFFER)
        self._flushed = -math.inf
        self._names: tuple[Any, ...] = ()

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write a Snapshot, and the names if they are new."""
        names = tuple(getattr(snapshot, name) for name in NAMES)
        if names != self._names:
            self._names = names
            header = {"type": "header", "format": FORMAT, "version": VERSION, **dict(zip(NAMES, names, strict=True))}
            self._write(json.dumps(header))
        self._write(f'{{"type": "snapshot", {", ".join(_parts(snapshot))}}}')
        if time.monotonic() - self._flushed > _WAITS:  # to flush each cost 1.2 ms of a step's 10 where files are slow
            self._flush()

    def finding(self, finding: Finding) -> None:
        """Write a Finding that has opened or closed."""
        numbers = {name: _strict(getattr(finding, name)) for name in ("value", "threshold")}
        self._write(json.dumps({"type": "finding", **asdict(finding), **numbers}, allow_nan=False))
        self._flush()

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()


def _mend(path: Path) -> None:
    """Cut half a line off an existing record's end; refuse to write into any other file."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        start = file.read(len(_START))
        if not _START.startswith(start):
            raise ValueError(f"{path} exists and is no record of gradwatch; give another path, or move it away")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
        file.truncate(end)


def _parts(snapshot: Snapshot) -> Iterator[str]:
    yield f'"step": {int(snapshot.step)}'
    for name in NUMBERS:
        if not math.isnan(getattr(snapshot, name)):
            yield f'"{name}": {_numbers([getattr(snapshot, name)])}'
    for name in WORDS:
        if getattr(snapshot, name):
            yield f'"{name}": {json.dumps(getattr(snapshot, name))}'
    if snapshot.skipped:
        yield '"skipped": true'
    for name in ARRAYS:
        values: Array = np.asarray(getattr(snapshot, name), np.float64)
        if not np.isnan(values).all():
            yield f'"{name}": [{_numbers(values.tolist())}]'
    if snapshot.calls:
        calls = [f"{json.dumps(layer)}: [{_numbers(norms.tolist())}]" for layer, norms in snapshot.calls.items()]
        yield f'"calls": {{{", ".join(calls)}}}'
    if len(snapshot.trace_step):
        yield f'"trace_step": {snapshot.trace_step.tolist()}'


def _numbers(values: list[float]) -> str:
    """Strict JSON of many floats in one go: six times as fast as ``json.dumps`` of rounded ones."""
    text = _pattern(len(values)) % tuple(values)
    if "n" not in text:
        return text
    return text.replace("nan", "null").replace("inf", '"inf"').replace('-"inf"', '"-inf"')


@lru_cache
def _pattern(count: int) -> str:
    return ", ".join(["%.6g"] * count)


def _strict(value: float) -> Any:
    return json.loads(_numbers([value]))
