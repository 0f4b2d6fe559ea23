"""Writes the record of a run: lines of JSON, to be read without TensorBoard."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradwatch.containment import OutOfService
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.reading import ALWAYS_NAMED, FORMAT, HEADER_NAMES, VERSION, Record, read_record
from gradwatch.reporting.record_files import LineFile, RemoteCopy, local_path, remote_url
from gradwatch.reporting.thinning import MOST_BYTES, Thinning

__all__ = ["JsonlRecord", "Record", "read_record"]


class JsonlRecord:
    """Writes Snapshots and Findings, one JSON object a line.

    A line is written at once; only a Snapshot that comes within a second of another waits for the next line, or the
    end.

    ==================  ======================================================================================
    ``type`` of a line  content
    ==================  ======================================================================================
    ``header``          names of layers, parameters and their groups, so that snapshots need not repeat them
    ``snapshot``        the fields of a Snapshot; columns without a value are left out
    ``finding``         the fields of a Finding: when it opens, and again when it closes
    ``about``           settings of the run, and the class of each module that holds watched layers: once, at the start
    ``diagnoses``       the causes of all findings, with their evidence and what to do: once, at the end
    ``lost``            the number of lines that could not be written here, and their steps
    ``thinned``         from here on one measured step in so many is written, as the file would pass ``most_bytes``
    ``out_of_service``  a part of the watching that failed and was switched off
    ==================  ======================================================================================

    It is strict JSON: a missing value is ``null``, a non-finite one ``"inf"``. Numbers have six digits.

    An existing file is continued, as a resumed run expects; half a line that a killed run left is cut off. Where a
    resumed run begins at an earlier step again, :func:`read_record` keeps its lines and drops the first run's.

    Once it is open, an error of the disk is never raised. Lines that cannot be written are dropped and counted, and a
    ``lost`` line says so as soon as the disk takes lines again.

    A remote file is written on this machine and uploaded every 30 seconds or more rarely, and at the end.

    The file stays below ``most_bytes``: see :class:`~gradwatch.reporting.thinning.Thinning`.

    Args:
        path: the file to write; missing folders are made. Also a URL that fsspec knows, such as
            ``s3://bucket/gradwatch.jsonl``.
        most_bytes: the file's bound.

    Attributes:
        path: the file as a Path, or a remote file's URL.

    Raises:
        OSError: when the file cannot be opened.
        ValueError: when the file exists and is no record, or fsspec does not know the URL's protocol.
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

    def __init__(self, path: str | Path, most_bytes: int = MOST_BYTES) -> None:
        url = remote_url(path)
        self.path: str | Path = url or local_path(path)
        self._remote = RemoteCopy(url) if url else None
        local = self._remote.path if self._remote else local_path(path)
        local.parent.mkdir(parents=True, exist_ok=True)
        self._lines = LineFile(local, str(self.path))
        self._names: dict[str, list[str]] = {}
        self._step = 0
        self._thinning, self._thinned_from = Thinning(most_bytes), 0
        # A record that nobody closes gets its last lines when it is collected or the interpreter ends.
        self._close = weakref.finalize(self, _close, self._lines, self._remote, os.getpid())

    @property
    def lost(self) -> int:
        """Number of Snapshots and Findings that could not be written."""
        return self._lines.lost

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._lines.size

    @property
    def trouble(self) -> str:
        """The lines that are missing from the file and the reason, in words; empty where none are."""
        remote, every = self._remote.trouble if self._remote else "", self._thinning.every
        thinned = f"{self.path} holds fewer measured steps from step {self._thinned_from} on, at the end one in {every}"
        thinned += ": it would have grown too large. A record_path that ends in .parquet keeps all, columns= keeps less"
        return "; ".join(filter(None, (self._lines.trouble, remote, thinned if every > 1 else "")))

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write a Snapshot, and the names if they are new; leave it out where the file grows too large."""
        self._step, every = int(snapshot.step), self._thinning.every
        kept = self._thinning.kept(snapshot, self.size)
        if self._thinning.every > every:
            self._thinned_from = self._thinned_from if every > 1 else self._step
            self._add(json.dumps({"type": "thinned", "every": self._thinning.every, "step": self._step}), "thinned")
        if kept is not None:
            self._write(kept)

    def _write(self, snapshot: Snapshot) -> None:
        values = snapshot.to_dict()
        names = {name: values.pop(name) for name in HEADER_NAMES}
        if not values["carried_over"]:
            del values["carried_over"]
        if names != self._names:
            self._names = names
            given = {name: found for name, found in names.items() if found or name in ALWAYS_NAMED}
            header = {"type": "header", "format": FORMAT, "version": VERSION, **given}
            self._lines.add(json.dumps(header), "header", self._step)
        self._add(_json({"type": "snapshot", **values}), "snapshot")

    def finding(self, finding: Finding) -> None:
        """Write a Finding that has opened or closed."""
        line = {"type": "finding", **finding.to_dict()}
        line |= {name: json.loads(_numbers([line[name]])) for name in ("value", "threshold")}
        seen = [name for name in ("latest", "worst") if name in line]
        line |= {name: [line[name][0], json.loads(_numbers([line[name][1]]))] for name in seen}
        self._add(json.dumps(line, allow_nan=False), "finding", at_once=True)

    def about(self, settings: Mapping[str, str], modules: Mapping[str, str]) -> None:
        """Write the run's settings, by name, and the class of each module that holds watched layers."""
        self._add(json.dumps({"type": "about", "settings": dict(settings), "modules": dict(modules)}), "about")

    def diagnoses(self, diagnoses: Sequence[Diagnosis]) -> None:
        """Write the causes of all findings, after the latest Snapshot, if that was left out."""
        if (last := self._thinning.last()) is not None:
            self._write(last)
        plain = [{**d.to_dict(), "score": round(d.score, 3)} for d in diagnoses]
        self._add(json.dumps({"type": "diagnoses", "diagnoses": plain}, allow_nan=False), "diagnoses", at_once=True)

    def out_of_service(self, failure: OutOfService) -> None:
        """Write that a part of the watching failed and was switched off."""
        self._add(json.dumps({"type": "out_of_service", **asdict(failure)}), "out_of_service", at_once=True)

    def close(self) -> None:
        """Write the waiting lines, upload a remote file and close it; may be called twice."""
        self._close()

    def _add(self, text: str, kind: str, *, at_once: bool = False) -> None:
        self._lines.add(text, kind, self._step, at_once=at_once)
        if self._remote:
            self._remote.upload_if_due()


def _close(lines: LineFile, remote: RemoteCopy | None, process: int) -> None:
    if os.getpid() != process:  # a forked process must not write its copy of the waiting lines
        return
    lines.close()
    if remote:
        remote.close()


def _json(value: Any) -> str:
    """Return strict JSON of a part of ``Snapshot.to_dict``, with six digits."""
    if isinstance(value, float):
        return _numbers([value])
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_json(item)}' for key, item in value.items())}}}"
    if isinstance(value, list) and value and isinstance(value[0], float):
        return f"[{_numbers(value)}]"
    return json.dumps(value)


def _numbers(values: list[float]) -> str:
    """Return strict JSON of many floats in one go: six times as fast as ``json.dumps`` of rounded ones."""
    text = _pattern(len(values)) % tuple(values)
    if "n" not in text:
        return text
    return text.replace("nan", "null").replace("inf", '"inf"').replace('-"inf"', '"-inf"')


@lru_cache
def _pattern(count: int) -> str:
    return ", ".join(["%.6g"] * count)
