"""A record of a run as lines of JSON, to be read without TensorBoard."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.containment import OutOfService
from gradwatch.records import Array, Finding, Snapshot
from gradwatch.reporting.reading import ARRAYS, FORMAT, NAMES, NUMBERS, VERSION, WORDS, Record, read_record
from gradwatch.reporting.record_files import LineFile, RemoteCopy, local_path, remote_url

__all__ = ["JsonlRecord", "Record", "read_record"]


class JsonlRecord:
    """Writes Snapshots and Findings, one JSON object a line.

    A line is on its way to the disk at once; only a Snapshot that comes within a second of another waits for the next
    line, or the end.

    ==================  ======================================================================================
    ``type`` of a line  content
    ==================  ======================================================================================
    ``header``          the names of layers and parameters, so that snapshots need not repeat them
    ``snapshot``        the fields of a Snapshot; columns without a value are left out
    ``finding``         the fields of a Finding: when it opens, and again when it closes
    ``lost``            how many lines could not be written here, and of which steps
    ``out_of_service``  a part of the watching that failed and was switched off
    ==================  ======================================================================================

    It is strict JSON: no value is ``null``, non-finite is ``"inf"``. Numbers have six digits.

    An existing file is continued, as a resumed run expects; half a line that a killed run left is cut off. When
    the steps start again at an earlier one, :func:`read_record` takes what was written last.

    Once it is open, nothing that happens to the disk raises an error. Lines that cannot be written are dropped and
    counted, and a ``lost`` line says so as soon as the disk takes lines again.

    A remote file is written on this machine and uploaded every 30 seconds or more rarely, and at the end.

    Args:
        path: where to write; missing folders are made. Also a URL that fsspec knows, such as
            ``s3://bucket/gradwatch.jsonl``.

    Attributes:
        path: the file as a Path, or a remote file's URL.

    Raises:
        OSError: when the file cannot be opened.
        ValueError: when the file exists and is no such record, or fsspec does not know the URL's protocol.
        ImportError: when the URL's protocol needs a package that is not installed; it names the package.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gradwatch.jsonl"
        >>> record = JsonlRecord(path)
        >>> record.snapshot(Snapshot(0, ("fc",), grad_norm=[0.5], params=("fc.weight",), param_grad_norm=[0.5]))
        >>> record.close()
        >>> print(path.read_text().splitlines()[1])
        {"type": "snapshot", "step": 0, "grad_norm": [0.5], "param_grad_norm": [0.5]}
        >>> record.lost, record.trouble
        (0, '')
    """

    def __init__(self, path: str | Path) -> None:
        url = remote_url(path)
        self.path: str | Path = url or local_path(path)
        self._remote = RemoteCopy(url) if url else None
        local = self._remote.path if self._remote else local_path(path)
        local.parent.mkdir(parents=True, exist_ok=True)
        self._lines = LineFile(local, str(self.path))
        self._names: tuple[Any, ...] = ()
        self._step = 0
        # So that a record that nobody closes is whole too, when it is forgotten or the interpreter ends.
        self._close = weakref.finalize(self, _close, self._lines, self._remote, os.getpid())

    @property
    def lost(self) -> int:
        """Number of Snapshots and Findings that could not be written."""
        return self._lines.lost

    @property
    def trouble(self) -> str:
        """What is missing from the file and why, in words; empty where nothing is."""
        return "; ".join(filter(None, (self._lines.trouble, self._remote.trouble if self._remote else "")))

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write a Snapshot, and the names if they are new."""
        self._step = int(snapshot.step)
        names = tuple(getattr(snapshot, name) for name in NAMES)
        if names != self._names:
            self._names = names
            header = {"type": "header", "format": FORMAT, "version": VERSION, **dict(zip(NAMES, names, strict=True))}
            self._lines.add(json.dumps(header), "header", self._step)
        self._add(f'{{"type": "snapshot", {", ".join(_parts(snapshot))}}}', "snapshot")

    def finding(self, finding: Finding) -> None:
        """Write a Finding that has opened or closed."""
        numbers = {name: _strict(getattr(finding, name)) for name in ("value", "threshold")}
        line = {"type": "finding", **asdict(finding), **numbers}
        self._add(json.dumps(line, allow_nan=False, default=_plain), "finding", at_once=True)

    def out_of_service(self, failure: OutOfService) -> None:
        """Write that a part of the watching failed and was switched off."""
        self._add(json.dumps({"type": "out_of_service", **asdict(failure)}), "out_of_service", at_once=True)

    def close(self) -> None:
        """Write what waits, upload a remote file and close it; may be called twice."""
        self._close()

    def _add(self, text: str, kind: str, *, at_once: bool = False) -> None:
        self._lines.add(text, kind, self._step, at_once=at_once)
        if self._remote:
            self._remote.upload_if_due()


def _close(lines: LineFile, remote: RemoteCopy | None, process: int) -> None:
    if os.getpid() != process:  # a forked process must not write its copy of what waits
        return
    lines.close()
    if remote:
        remote.close()


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
    """Return strict JSON of many floats in one go: six times as fast as ``json.dumps`` of rounded ones."""
    text = _pattern(len(values)) % tuple(values)
    if "n" not in text:
        return text
    return text.replace("nan", "null").replace("inf", '"inf"').replace('-"inf"', '"-inf"')


@lru_cache
def _pattern(count: int) -> str:
    return ", ".join(["%.6g"] * count)


def _strict(value: float) -> Any:
    return json.loads(_numbers([value]))


def _plain(value: Any) -> Any:
    """Return a number of numpy or torch, which a detector may have put into a Finding, as Python's own."""
    return value.item() if hasattr(value, "item") else str(value)
