"""Reads a JSONL record back into Snapshots and Findings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.records import COLUMNS, Array, Finding, Snapshot

FORMAT, VERSION = "gradwatch", 1
NAMES = ("layers", "kinds", "params", "left_out")
NUMBERS = ("loss", "total_norm", "total_norm_after", "learning_rate", "input_rms", "loss_scale")
WORDS = ("optimizer", "dtype")
ARRAYS = (*COLUMNS, "param_grad_norm", "trace_loss", "trace_total_norm")


def read_record(path: str | Path) -> tuple[list[Snapshot], list[Finding]]:
    """Snapshots and Findings of a record that :class:`JsonlRecord` wrote.

    A last line that was cut short is left out. Where a resumed run began again at an earlier step, what the first run
    wrote from that step on is left out too: the result is one run, as it went in the end.

    Args:
        path: the record.

    Raises:
        ValueError: when a line other than the last can't be read, or a newer gradwatch wrote it.

    Example:
        >>> import tempfile
        >>> from gradwatch.reporting.jsonl import JsonlRecord
        >>> record = JsonlRecord(tempfile.mkdtemp() + "/gradwatch.jsonl")
        >>> record.snapshot(Snapshot(0, ("fc",), grad_norm=[0.5]))
        >>> record.finding(Finding("vanishing", ("fc",), 0, 1e-7, 1e-3, "it vanishes"))
        >>> snapshots, findings = read_record(record.path)
        >>> snapshots[0].grad_norm, findings[0].layers
        (array([0.5]), ('fc',))
    """
    snapshots: list[Snapshot] = []
    findings: list[tuple[int, Finding]] = []  # with the step that was written last before
    names: dict[str, tuple[str, ...]] = {}
    for line in _lines(Path(path)):
        if line["type"] == "header":
            names = {name: tuple(line[name]) for name in NAMES}
        elif line["type"] == "snapshot":
            snapshot = _snapshot(line, names)
            if snapshots and snapshot.step <= snapshots[-1].step:
                snapshots = [kept for kept in snapshots if kept.step < snapshot.step]
                findings = [(step, finding) for step, finding in findings if step < snapshot.step]
            snapshots.append(snapshot)
        elif line["type"] == "finding":
            findings.append((snapshots[-1].step if snapshots else -1, _finding(line)))
    return snapshots, _latest(finding for _, finding in findings)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        broken: int | None = None
        for position, text in enumerate(file, 1):
            if broken is not None:
                raise ValueError(f"line {broken} of {path} is no JSON; only a last line may be cut short")
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                broken = position
                continue
            if line.get("version", VERSION) > VERSION:
                raise ValueError(
                    f"{path} has format version {line['version']}; this gradwatch reads up to {VERSION}: update it"
                )
            yield line


def _snapshot(line: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> Snapshot:
    given: dict[str, Any] = dict(names) | {name: _array(line[name]) for name in ARRAYS if name in line}
    given |= {name: float(line[name]) for name in NUMBERS if name in line}
    given |= {name: line[name] for name in WORDS if name in line}
    given["trace_step"] = np.array(line.get("trace_step", []), np.int64)
    for name, like in (("param_grad_norm", names["params"]), *((n, given["trace_step"]) for n in ARRAYS[-2:])):
        given.setdefault(name, np.full(len(like), np.nan))
    given["calls"] = {layer: _array(norms) for layer, norms in line.get("calls", {}).items()}
    return Snapshot(line["step"], skipped=line.get("skipped", False), **given)


def _array(values: Sequence[Any]) -> Array:
    return np.array([math.nan if value is None else float(value) for value in values])


def _finding(line: Mapping[str, Any]) -> Finding:
    given = {field.name: line[field.name] for field in fields(Finding) if field.name in line}
    numbers = {name: float(_array([given[name]])[0]) for name in ("value", "threshold")}
    return Finding(**{**given, **numbers, "layers": tuple(given["layers"])})


def _latest(lines: Iterable[Finding]) -> list[Finding]:
    """Each finding as its last line has it; while it is open, layers may join it."""
    findings: list[Finding] = []
    for new in lines:
        for place, old in enumerate(findings):
            if (old.kind, old.step) == (new.kind, new.step) and (set(old.layers) & set(new.layers) or old == new):
                findings[place] = new
                break
        else:
            findings.append(new)
    return findings
