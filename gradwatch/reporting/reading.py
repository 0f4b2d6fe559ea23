"""Reads a record, line by line, and leaves out the lines that are damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from gradwatch.containment import OutOfService, say
from gradwatch.plain_values import DAMAGE, as_step, of_type
from gradwatch.records import NAMES, Diagnosis, Finding, Snapshot
from gradwatch.reporting.record_files import open_to_read
from gradwatch.reporting.text import plural

FORMAT, VERSION = "gradwatch", 1
LATEST, PART = "latest.jsonl", "part-"  # in the folder of a record in Parquet
NO_PYARROW = "a record in Parquet needs pyarrow; install it with: pip install pyarrow"
ALWAYS_NAMED = ("layers", "kinds", "params", "left_out")  # in each header; the records of 0.1.0 have no others
# What is carried over changes from step to step, so it stands in the lines of the snapshots.
HEADER_NAMES = tuple(name for name in NAMES if name != "carried_over")
Line = Mapping[str, Any]


class NewerFormatError(ValueError):
    """A record that a newer gradwatch wrote."""


@dataclass(frozen=True)
class Record:
    """A run, read from its record; it unpacks as ``snapshots, findings``.

    Attributes:
        snapshots: the measured steps, in order.
        findings: each one as its last line has it.
        damaged: number of lines that cannot be read. A last line without a line break is not counted: a run that is
            killed leaves one.
        lost: number of Snapshots and Findings that were never written, because the disk was full or failed.
        out_of_service: the parts of the watching that failed and were switched off.
        diagnoses: the causes, as they were known at the end; None where the record has none: the run was killed, or the
            record is of version 0.1.0.
        settings: of the run, by name.
        modules: name -> class of each module that holds watched layers.
        thinned: at the end one in so many measured steps was written, as the record grew large; 1 for all.

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
    diagnoses: list[Diagnosis] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    thinned: int = 1

    def __iter__(self) -> Iterator[Any]:
        return iter((self.snapshots, self.findings))

    @overload
    def __getitem__(self, place: Literal[0]) -> list[Snapshot]: ...
    @overload
    def __getitem__(self, place: Literal[1]) -> list[Finding]: ...
    def __getitem__(self, place: int) -> list[Snapshot] | list[Finding]:
        return (self.snapshots, self.findings)[place]


def read_record(path: str | Path, most_bytes: int | None = None) -> Record:
    """Read a record that a monitor wrote, as far as it can be read.

    Damaged lines are left out, and a warning gives their number. Lines of an unknown type are ignored. Where a resumed
    run began again at an earlier step, the first run's lines from that step on are left out: the result is one run.

    Args:
        path: the record; also a URL that fsspec knows, such as ``s3://bucket/gradwatch.jsonl``, or the folder of a
            record in Parquet.
        most_bytes: of columns in memory; where there are more, every second Snapshot is dropped, as in a monitor's
            history. None keeps all.

    Raises:
        OSError: when the file is not there or cannot be opened.
        ValueError: when a newer gradwatch wrote it.
        ImportError: for one in Parquet, when pyarrow is not installed.

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
    reader = _Reader(most_bytes)
    try:
        if is_parquet(path):
            reader.read_folder(Path(path))
        else:
            with open_to_read(path) as file:
                reader.read_lines(file)
    except NewerFormatError as error:
        raise ValueError(f"{path} {error}") from None
    if reader.damaged:
        say(f"{plural(reader.damaged, 'line')} of {path} cannot be read; the rest is read")
    return reader.record()


def is_parquet(path: str | Path) -> bool:
    """Return True for the folder of a record in Parquet."""
    folder = Path(path)
    return folder.suffix == ".parquet" and folder.is_dir()


def pyarrow_parquet() -> Any:
    """Return pyarrow's module for Parquet, or raise an ImportError that names the package."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError(NO_PYARROW) from None
    return parquet


class _Reader:
    """Puts a record's lines together.

    Args:
        most_bytes: of columns; None for no bound.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self.snapshots: list[Snapshot] = []
        self._most_bytes, self._bytes, self._stride, self._count = most_bytes, 0, 1, 0
        self.damaged = 0
        self.lost = 0
        self._thinned = 1
        self.out_of_service: list[OutOfService] = []
        self._findings: list[tuple[int, Finding]] = []  # with the step of the last Snapshot before
        self._names: Line = {}
        self._about: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._diagnoses: list[Line] | None = None
        self._readers = {
            "header": self._read_header,
            "snapshot": self._read_snapshot,
            "finding": self._read_finding,
            "lost": self._read_lost,
            "thinned": self._read_thinned,
            "out_of_service": self._read_out_of_service,
            "about": self._read_about,
            "diagnoses": self._read_diagnoses,
        }

    def read_lines(self, lines: Iterable[bytes]) -> None:
        """Read lines; count damaged ones, except a last one that a killed run left without a line break."""
        for text in lines:
            try:
                self._read(json.loads(text.decode(errors="replace")))
            except NewerFormatError:
                raise
            except DAMAGE:
                self.damaged += text.endswith(b"\n")

    def read_folder(self, folder: Path) -> None:
        """Read the parts of a record in Parquet, then its latest lines; a damaged part counts as one line."""
        parquet = pyarrow_parquet()
        for part in sorted(folder.glob(f"{PART}*.parquet")):
            try:
                self._read_rows(parquet.read_table(part))
            except (OSError, *DAMAGE):  # pyarrow's own errors are of these
                self.damaged += 1
        if (folder / LATEST).exists():
            with (folder / LATEST).open("rb") as file:
                self.read_lines(file)

    def _read_rows(self, table: Any) -> None:
        columns = {name: table[name].combine_chunks() for name in table.column_names if name != "line"}
        for row, text in enumerate(table["line"].to_pylist()):
            numbers = {name: column[row].values for name, column in columns.items() if column[row].is_valid}
            self._read(
                json.loads(text) | {name: values.to_numpy(zero_copy_only=False) for name, values in numbers.items()}
            )

    def _read(self, line: Line) -> None:
        if line["type"] in self._readers:
            self._readers[line["type"]](line)

    def record(self) -> Record:
        """Return what has been read."""
        findings, diagnoses = self.findings(), None
        if self._diagnoses is not None:
            diagnoses = [Diagnosis.from_dict(line, findings) for line in self._diagnoses]
        known = (self.damaged, self.lost, self.out_of_service, diagnoses)
        return Record(self.snapshots, findings, *known, *self._about, self._thinned)

    def findings(self) -> list[Finding]:
        """Return each finding as its last line has it; while a finding is open, layers may join it."""
        findings: list[Finding] = []
        for _, new in self._findings:
            for place, old in enumerate(findings):
                if (old.kind, old.step) == (new.kind, new.step) and (set(old.layers) & set(new.layers) or old == new):
                    findings[place] = new
                    break
            else:
                findings.append(new)
        return findings

    def _read_header(self, line: Line) -> None:
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']!r:.50} is not {FORMAT!r}")
        version = of_type(int, line["version"])
        if version > VERSION:
            raise NewerFormatError(f"has format version {version}; this gradwatch reads up to {VERSION}: update it")
        names = {name: line[name] for name in HEADER_NAMES if name in line or name in ALWAYS_NAMED}
        Snapshot.from_dict({"step": 0, **names})  # raises where the names are damaged
        self._names = names

    def _read_snapshot(self, line: Line) -> None:
        snapshot = Snapshot.from_dict({**line, **self._names})
        # A resumed run begins at an earlier step again; what the first run did from there on did not last.
        if self.snapshots and snapshot.step <= self.snapshots[-1].step:
            self.snapshots = [kept for kept in self.snapshots if kept.step < snapshot.step]
            self._findings = [(step, finding) for step, finding in self._findings if step < snapshot.step]
        self._keep(snapshot)
        self._diagnoses = None  # those of a run that has been resumed since

    def _keep(self, snapshot: Snapshot) -> None:
        """Keep a Snapshot; the latest is always there, and of the others every second is dropped at the bound."""
        if self.snapshots and (self._count - 1) % self._stride:
            self._bytes -= self.snapshots.pop().nbytes
        self.snapshots.append(snapshot)
        self._bytes += snapshot.nbytes
        self._count += 1
        if self._most_bytes is not None and self._bytes > self._most_bytes:
            latest = [] if (self._count - 1) % (2 * self._stride) == 0 else self.snapshots[-1:]
            self.snapshots = [*self.snapshots[: -len(latest) or None : 2], *latest]
            self._stride *= 2
            self._bytes = sum(each.nbytes for each in self.snapshots)

    def _read_finding(self, line: Line) -> None:
        self._findings.append((self.snapshots[-1].step if self.snapshots else -1, Finding.from_dict(line)))

    def _read_lost(self, line: Line) -> None:
        self.lost += as_step(line["snapshots"]) + as_step(line["findings"])

    def _read_thinned(self, line: Line) -> None:
        self._thinned = as_step(line["every"])

    def _read_out_of_service(self, line: Line) -> None:
        failure = OutOfService(of_type(str, line["part"]), as_step(line["step"]), of_type(str, line["error"]))
        if failure not in self.out_of_service:
            self.out_of_service.append(failure)

    def _read_about(self, line: Line) -> None:
        self._about = (_texts(line["settings"]), _texts(line["modules"]))

    def _read_diagnoses(self, line: Line) -> None:
        diagnoses = of_type(list, line["diagnoses"])
        for diagnosis in diagnoses:
            Diagnosis.from_dict(diagnosis, ())  # raises where it is damaged
        self._diagnoses = diagnoses


def _texts(value: Any) -> dict[str, str]:
    return {of_type(str, name): of_type(str, text) for name, text in of_type(dict, value).items()}
