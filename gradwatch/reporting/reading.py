"""Fields of a record's lines, each checked when it is read: a damaged line must not pass for a Snapshot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np

from gradwatch.containment import OutOfService, say
from gradwatch.records import COLUMNS, Array, Finding, Snapshot
from gradwatch.reporting.losses import counted
from gradwatch.reporting.record_files import open_to_read

FORMAT, VERSION = "gradwatch", 1
NAMES = ("layers", "kinds", "params", "left_out")
NUMBERS = ("loss", "total_norm", "total_norm_after", "learning_rate", "input_rms", "loss_scale")
WORDS = ("optimizer", "dtype")
TRACES = ("trace_loss", "trace_total_norm")
ARRAYS = (*COLUMNS, "param_grad_norm", *TRACES)
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)  # of reading a damaged line

T = TypeVar("T")
Line = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]


class NewerFormatError(ValueError):
    """A record that a newer gradwatch wrote."""


def names_of(line: Line) -> Names:
    """Return the names in a header; the functions of this module raise one of ``DAMAGE`` for a damaged line.

    Raises:
        NewerFormatError: for a version that is not known here.

    Example:
        >>> header = {"format": "gradwatch", "version": 1, "layers": ["fc"], "kinds": [], "params": [], "left_out": []}
        >>> names_of(header)["layers"]
        ('fc',)
    """
    if line["format"] != FORMAT:
        raise ValueError(f"format {line['format']!r:.50} is not {FORMAT!r}")
    version = _is(int, line["version"])
    if version > VERSION:
        raise NewerFormatError(f"has format version {version}; this gradwatch reads up to {VERSION}: update it")
    names = {name: _words(line[name]) for name in NAMES}
    if len(names["kinds"]) not in (0, len(names["layers"])):
        raise ValueError("a kind is missing")
    return names


def snapshot_of(line: Line, names: Names) -> Snapshot:
    """Return the Snapshot in a line, with the names of the header before it.

    Example:
        >>> names = {"layers": ("fc",), "kinds": (), "params": (), "left_out": ()}
        >>> snapshot_of({"step": 3, "grad_norm": [0.5], "loss": ["inf"]}, names)
        Traceback (most recent call last):
            ...
        TypeError: ['inf'] is no number
        >>> snapshot_of({"step": 3, "grad_norm": [0.5], "loss": "inf"}, names).loss
        inf
    """
    given: dict[str, Any] = {**names, **{name: _array(line[name]) for name in ARRAYS if name in line}}
    given |= {name: _number(line[name]) for name in NUMBERS if name in line}
    given |= {name: _is(str, line[name]) for name in WORDS if name in line}
    given["trace_step"] = np.array([_step(step) for step in _is(list, line.get("trace_step", []))], np.int64)
    for name, like in (("param_grad_norm", names["params"]), *((name, given["trace_step"]) for name in TRACES)):
        if len(given.setdefault(name, np.full(len(like), np.nan))) != len(like):
            raise ValueError(f"{name} has {len(given[name])} values; expected {len(like)}")
    given["calls"] = {layer: _array(norms) for layer, norms in _is(dict, line.get("calls", {})).items()}
    return Snapshot(_step(line["step"]), skipped=_is(bool, line.get("skipped", False)), **given)


def finding_of(line: Line) -> Finding:
    """Return the Finding in a line."""
    given: dict[str, Any] = {name: _is(str, line[name]) for name in ("kind", "message", "severity") if name in line}
    given |= {name: _number(line[name]) for name in ("value", "threshold")}
    closed = line.get("closed_step")
    given["closed_step"] = None if closed is None else _step(closed)
    return Finding(layers=_words(line["layers"]), step=_step(line["step"]), **given)


def lost_in(line: Line) -> int:
    """Return how many lines could not be written in the place of this one."""
    return _step(line["snapshots"]) + _step(line["findings"])


def out_of_service_of(line: Line) -> OutOfService:
    """Return the part of the watching that a line says was switched off."""
    return OutOfService(_is(str, line["part"]), _step(line["step"]), _is(str, line["error"]))


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # not isinstance: True would be an int
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value


def _step(value: Any) -> int:
    step = _is(int, value)
    if not 0 <= step < 1 << 63:
        raise ValueError(f"{step} is no step")
    return step


def _words(value: Any) -> tuple[str, ...]:
    return tuple(_is(str, word) for word in _is(list, value))


def _number(value: Any) -> float:
    if type(value) in (list, dict, bool):
        raise TypeError(f"{value!r:.50} is no number")
    return float(_array([value])[0])


def _array(values: Any) -> Array:
    array: Array = np.array(_is(list, values), np.float64)  # reads null as NaN, and the texts "inf" and "-inf"
    if array.ndim != 1:
        raise ValueError(f"{array.ndim} dimensions; expected 1")
    return array


@dataclass(frozen=True)
class Record:
    """A run as its record tells it; it unpacks as ``snapshots, findings``.

    Attributes:
        snapshots: the measured steps, in order.
        findings: each one as it was written last.
        damaged: how many lines were left out because they cannot be read. A last line without a line break is not
            counted: a run that is killed leaves one.
        lost: how many Snapshots and Findings were never written, because the disk was full or failed.
        out_of_service: the parts of the watching that failed and were switched off.

    Example:
        >>> snapshots, findings = Record([Snapshot(0, ("fc",))], [])
        >>> len(snapshots), len(findings)
        (1, 0)
    """

    snapshots: list[Snapshot]
    findings: list[Finding]
    damaged: int = 0
    lost: int = 0
    out_of_service: list[OutOfService] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.snapshots, self.findings))

    @overload
    def __getitem__(self, place: Literal[0]) -> list[Snapshot]: ...
    @overload
    def __getitem__(self, place: Literal[1]) -> list[Finding]: ...
    def __getitem__(self, place: int) -> list[Snapshot] | list[Finding]:
        return (self.snapshots, self.findings)[place]


def read_record(path: str | Path) -> Record:
    """Read a record that :class:`JsonlRecord` wrote, as far as it can be read.

    A line that is damaged is left out and counted, and a warning says how many there are. Lines of an unknown type
    are ignored. Where a resumed run began again at an earlier step, the first run's lines from that step on are left
    out: the result is one run, as it went in the end.

    Args:
        path: the record; also a URL that fsspec knows, such as ``s3://bucket/gradwatch.jsonl``.

    Raises:
        OSError: when the file is not there or cannot be opened.
        ValueError: when a newer gradwatch wrote it.

    Example:
        >>> import tempfile
        >>> from gradwatch.reporting.record import JsonlRecord
        >>> record = JsonlRecord(tempfile.mkdtemp() + "/gradwatch.jsonl")
        >>> record.snapshot(Snapshot(0, ("fc",), grad_norm=[0.5]))
        >>> record.finding(Finding("vanishing", ("fc",), 0, 1e-7, 1e-3, "it vanishes"))
        >>> snapshots, findings = read_record(record.path)
        >>> snapshots[0].grad_norm, findings[0].layers
        (array([0.5]), ('fc',))

        >>> import warnings
        >>> with warnings.catch_warnings(), open(record.path, "a") as file:
        ...     warnings.simplefilter("ignore")
        ...     print('{"type": "snapshot", "step": 1, "grad_', file=file, flush=True)
        ...     damaged = read_record(record.path)
        >>> len(damaged.snapshots), damaged.damaged, damaged.lost
        (1, 1, 0)
    """
    reader = _Reader()
    with open_to_read(path) as file:
        for text in file:
            try:
                reader.take(text)
            except NewerFormatError as error:
                raise ValueError(f"{path} {error}") from None
    if reader.damaged:
        say(f"{counted(reader.damaged, 'line')} of {path} cannot be read; the rest is read")
    return Record(reader.snapshots, reader.findings(), reader.damaged, reader.lost, reader.out_of_service)


class _Reader:
    """Puts a record's lines together."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.damaged = 0
        self.lost = 0
        self.out_of_service: list[OutOfService] = []
        self._findings: list[tuple[int, Finding]] = []  # with the step of the last Snapshot before
        self._names: Names = {}
        self._takers = {
            "header": self._take_header,
            "snapshot": self._take_snapshot,
            "finding": self._take_finding,
            "lost": self._take_lost,
            "out_of_service": self._take_out_of_service,
        }

    def take(self, text: bytes) -> None:
        """Take one line; count it if it is damaged."""
        try:
            line = json.loads(text.decode(errors="replace"))
            taker = self._takers.get(line["type"])
            if taker:
                taker(line)
        except NewerFormatError:
            raise
        except DAMAGE:
            self.damaged += text.endswith(b"\n")

    def findings(self) -> list[Finding]:
        """Return each finding as its last line has it."""
        return _latest(finding for _, finding in self._findings)

    def _take_header(self, line: Line) -> None:
        self._names = names_of(line)

    def _take_snapshot(self, line: Line) -> None:
        snapshot = snapshot_of(line, self._names)
        if self.snapshots and snapshot.step <= self.snapshots[-1].step:
            self.snapshots = [kept for kept in self.snapshots if kept.step < snapshot.step]
            self._findings = [(step, finding) for step, finding in self._findings if step < snapshot.step]
        self.snapshots.append(snapshot)

    def _take_finding(self, line: Line) -> None:
        self._findings.append((self.snapshots[-1].step if self.snapshots else -1, finding_of(line)))

    def _take_lost(self, line: Line) -> None:
        self.lost += lost_in(line)

    def _take_out_of_service(self, line: Line) -> None:
        self.out_of_service.append(out_of_service_of(line))


def _latest(lines: Iterable[Finding]) -> list[Finding]:
    """Keep the last line of each finding; while a finding is open, layers may join it."""
    findings: list[Finding] = []
    for new in lines:
        for place, old in enumerate(findings):
            if (old.kind, old.step) == (new.kind, new.step) and (set(old.layers) & set(new.layers) or old == new):
                findings[place] = new
                break
        else:
            findings.append(new)
    return findings
