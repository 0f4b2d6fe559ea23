"""Reads a JSONL record back, also where some of its lines are damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from gradwatch.containment import OutOfService, say
from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.losses import counted
from gradwatch.reporting.record_lines import (
    DAMAGE,
    Line,
    Names,
    NewerFormatError,
    finding_of,
    lost_in,
    names_of,
    out_of_service_of,
    snapshot_of,
)
from gradwatch.reporting.remote import open_to_read


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
        >>> from gradwatch.reporting.jsonl import JsonlRecord
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
