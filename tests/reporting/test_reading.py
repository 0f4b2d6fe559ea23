"""Records with damaged lines are read as far as they can be."""

from __future__ import annotations

import json
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shown_runs import FINDING, INF, vanishing_run

from gradwatch.containment import OutOfService
from gradwatch.records import Snapshot
from gradwatch.reporting.reading import VERSION
from gradwatch.reporting.record import JsonlRecord, Record, read_record

pytestmark = pytest.mark.filterwarnings("ignore:gradwatch. .* cannot be read")
OUT = OutOfService("layer net.1", 3, "RuntimeError: no storage")
unhurried = settings(deadline=None)  # other processes may keep the disk busy
Key = tuple[int, tuple[str, ...], bytes]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "gradwatch.jsonl"


@pytest.fixture(scope="module")
def lines(path: Path) -> list[bytes]:
    """A record with everything in it, and two networks of different sizes."""
    first, second = vanishing_run(depth=2, steps=4), vanishing_run(depth=1, steps=8)[4:]
    calls = {"net.1": np.array([1e-9, INF, 1.0])}
    with closing(JsonlRecord(path)) as record:
        for snapshot in [replace(first[0], calls=calls, optimizer="SGD"), *first[1:], *second]:
            record.snapshot(snapshot)
            record.finding(replace(FINDING, step=snapshot.step))
        record.out_of_service(OUT)
    lost = b'{"type": "lost", "snapshots": 2, "findings": 1, "first_step": 8, "last_step": 9}\n'
    return [*path.read_bytes().splitlines(keepends=True), lost]


def read(path: Path, content: bytes) -> Record:
    path.write_bytes(content)
    return read_record(path)


def keys(record: Record) -> list[Key]:
    return [(snapshot.step, snapshot.layers, snapshot.grad_norm.tobytes()) for snapshot in record.snapshots]


def test_a_whole_record_tells_all(path: Path, lines: list[bytes]) -> None:
    record = read(path, b"".join(lines))
    assert [len(snapshot.layers) for snapshot in record.snapshots] == [5, 5, 5, 5, 3, 3, 3, 3]
    assert (len(record.findings), record.damaged, record.lost, record.out_of_service) == (8, 0, 3, [OUT])
    snapshots, findings = record
    assert (snapshots, findings) == (record[0], record[1]) == (record.snapshots, record.findings)


@unhurried
@given(share=st.floats(0, 1))
def test_of_a_truncated_record_what_comes_before_is_read(path: Path, lines: list[bytes], share: float) -> None:
    whole = b"".join(lines)
    record = read(path, whole[: int(share * len(whole))])
    expected = keys(read(path, whole))
    assert keys(record) == expected[: len(record.snapshots)]
    assert record.damaged == 0  # half a last line is what a killed run leaves


@unhurried
@given(st.data())
def test_without_some_lines_a_subset_is_read(path: Path, lines: list[bytes], data: st.DataObject) -> None:
    dropped = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    record = read(path, b"".join(line for place, line in enumerate(lines) if place not in dropped))
    assert set(keys(record)) <= set(keys(read(path, b"".join(lines))))
    headers = [place for place, line in enumerate(lines) if b'"header"' in line]
    if not dropped & set(headers):
        assert record.damaged == 0


@unhurried
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8))
def test_changed_bytes_never_raise(path: Path, lines: list[bytes], changes: list[tuple[float, int]]) -> None:
    content = bytearray(b"".join(lines))
    for place, byte in changes:
        content[int(place * len(content))] = byte
    try:
        record = read(path, bytes(content))
    except ValueError as error:
        assert "format version" in str(error)  # noqa: PT017 (a changed version cannot be told from a newer one)
        return
    assert len(record.snapshots) <= 8
    assert all(isinstance(snapshot, Snapshot) for snapshot in record.snapshots)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@unhurried
@given(st.data())
def test_fields_of_any_type_never_raise(path: Path, lines: list[bytes], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(lines) - 1))
    line = json.loads(lines[place])
    name = data.draw(st.sampled_from(sorted(line)))
    changed = {**line, name: data.draw(JSON)} if data.draw(st.booleans()) else {k: line[k] for k in line if k != name}
    version = changed.get("version", 0)
    assume(isinstance(version, bool) or not isinstance(version, int) or version <= VERSION)  # a newer one is refused
    content = [*lines[:place], json.dumps(changed).encode() + b"\n", *lines[place + 1 :]]
    record = read(path, b"".join(content))
    assert all(len(snapshot.grad_norm) == len(snapshot.layers) for snapshot in record.snapshots)
    assert all(isinstance(finding.message, str) for finding in record.findings)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"",
        b"\0\0\0",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'"snapshot"',
        b"null",
        b"{}",
        b'{"type": ["snapshot"]}',
        b'{"type": "finding"}',
        b'{"type": "lost"}',
        b'{"type": "out_of_service", "part": 3}',
        b'{"type": "snapshot"}',
        b'{"type": "snapshot", "step": 2.5}',
        b'{"type": "snapshot", "step": true}',
        b'{"type": "snapshot", "step": 100, "grad_norm": [1.0]}',
        b'{"type": "snapshot", "step": 100, "grad_norm": "inf"}',
        b'{"type": "snapshot", "step": 100, "loss": "high"}',
        b'{"type": "snapshot", "step": 100, "trace_loss": [1.0]}',
        b'{"type": "snapshot", "step": 100, "calls": [1.0]}',
        b'{"type": "header", "format": "gradwatch", "version": 1}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_left_out_and_counted(path: Path, lines: list[bytes], text: bytes) -> None:
    expected = read(path, b"".join(lines))
    record = read(path, b"".join([*lines[:4], text + b"\n", *lines[4:]]))
    assert keys(record) == keys(expected)
    assert (record.findings, record.damaged) == (expected.findings, 1)


def test_snapshots_before_any_header_are_left_out(path: Path, lines: list[bytes]) -> None:
    record = read(path, b"".join(lines[1:]))
    assert [snapshot.step for snapshot in record.snapshots] == [4, 5, 6, 7]
    assert record.damaged == 4


def test_lines_of_an_unknown_type_are_ignored(path: Path, lines: list[bytes]) -> None:
    record = read(path, b"".join([*lines, b'{"type": "remark", "text": "hello"}\n']))
    assert (len(record.snapshots), record.damaged) == (8, 0)


def test_a_warning_says_how_many_lines_are_damaged(path: Path, lines: list[bytes]) -> None:
    with pytest.warns(UserWarning, match=r"gradwatch: 2 lines of .*gradwatch\.jsonl cannot be read") as caught:
        read(path, b"".join([*lines, b"{\n", b"}\n"]))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path, b"".join([*lines, b"{"]))


def test_a_damaged_record_can_be_continued(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join([*lines[:3], b'{"type": "snap\0\n', *lines[3:]])[:-5])
    (snapshot,) = vanishing_run(depth=2, steps=1)
    with closing(JsonlRecord(path)) as record:
        record.snapshot(replace(snapshot, step=8))
    read = read_record(path)
    assert ([snapshot.step for snapshot in read.snapshots], read.damaged) == ([*range(9)], 1)


def test_findings_with_numbers_of_numpy_are_written(path: Path) -> None:
    odd: Any = replace(FINDING, step=np.int64(3), value=np.float32(0.5), layers=(np.str_("net.1"),))
    path.unlink()
    with closing(JsonlRecord(path)) as record:
        record.finding(odd)
    assert read_record(path).findings == [replace(FINDING, step=3, value=0.5, layers=("net.1",))]
