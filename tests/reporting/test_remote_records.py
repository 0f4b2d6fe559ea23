"""Records at remote places, here fsspec's file system in memory."""

from __future__ import annotations

import gc
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shown_runs import FINDING, vanishing_run

from gradwatch.reporting import record_files
from gradwatch.reporting.record import JsonlRecord, read_record
from gradwatch.reporting.record_files import RemoteCopy, remote_url

URL = "memory://runs/first/gradwatch.jsonl"


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(record_files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(record_files.time, "monotonic", lambda: now[0])
    return now


def content() -> bytes:
    found: bytes = fsspec.filesystem("memory").cat("/runs/first/gradwatch.jsonl")
    return found


def breaking(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)


@pytest.mark.parametrize("path", [URL, Path("memory://runs/first") / "gradwatch.jsonl"])
def test_a_remote_record_is_uploaded_and_read_back(path: str | Path, tmp_path: Path) -> None:
    run = vanishing_run()
    with closing(JsonlRecord(path)) as record:
        for snapshot in run:
            record.snapshot(snapshot)
        record.finding(FINDING)
    assert record.path == URL
    snapshots, findings = read_record(path)
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 2]
    assert findings == [FINDING]
    assert (record.trouble, list(tmp_path.iterdir())) == ("", [])


def test_a_resumed_run_goes_on_with_the_remote_record() -> None:
    run = vanishing_run(steps=4)
    for step in range(4):
        if step == 2:
            fsspec.filesystem("memory").pipe("/runs/first/gradwatch.jsonl", content() + b'{"type": "sna')
        with closing(JsonlRecord(URL)) as record:
            record.snapshot(run[step])
    assert [snapshot.step for snapshot in read_record(URL).snapshots] == [0, 1, 2, 3]
    assert [json.loads(line)["type"] for line in content().splitlines()] == ["header", "snapshot"] * 4


def test_uploads_are_half_a_minute_apart_and_take_a_hundredth_of_the_time(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[float] = []
    real = MemoryFileSystem.put_file

    def slow(*given: Any, **more: Any) -> None:
        uploads.append(clock[0])
        clock[0] += 2.0  # seconds
        real(*given, **more)

    monkeypatch.setattr(MemoryFileSystem, "put_file", slow)
    (snapshot,) = vanishing_run(steps=1)
    with closing(JsonlRecord(URL)) as record:
        for _ in range(300):
            record.snapshot(snapshot)
            clock[0] += 1.0
    assert uploads[:-1] == [1030.0, 1232.0]  # and the last one is that of the end


def test_an_upload_that_fails_is_tried_again(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    run = vanishing_run(steps=2)
    record = JsonlRecord(URL)
    with monkeypatch.context() as broken:
        breaking(broken, RuntimeError("no route to host"))
        clock[0] += 31
        record.snapshot(run[0])
        assert f"could not be uploaded to {URL} (RuntimeError: no route to host)" in record.trouble
    clock[0] += 31
    record.snapshot(run[1])
    assert record.trouble == ""
    assert content()
    record.close()
    assert len(read_record(URL).snapshots) == 2


def test_where_the_last_upload_fails_the_local_file_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = JsonlRecord(URL)
    record.snapshot(vanishing_run()[0])
    breaking(monkeypatch, OSError(110, "Connection timed out"))
    record.close()
    record.close()
    (kept,) = tmp_path.iterdir()
    assert record.trouble == (
        f"the latest lines could not be uploaded to {URL} (TimeoutError: Connection timed out); they are in {kept}"
    )
    assert len(read_record(kept).snapshots) == 1


def test_a_place_that_cannot_be_reached_raises_at_the_start_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").pipe("/runs/first/gradwatch.jsonl", b'{"type": "remark"}\n')

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "_open", fail)
        broken.setattr(MemoryFileSystem, "info", fail)
        with pytest.raises(ConnectionError, match="no route to host"):
            JsonlRecord(URL)
    gc.collect()
    assert content() == b'{"type": "remark"}\n'
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_may_not_be_made_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("may not make buckets")

    real = MemoryFileSystem.makedirs
    monkeypatch.setattr(MemoryFileSystem, "makedirs", fail)
    record = JsonlRecord(URL)
    monkeypatch.setattr(MemoryFileSystem, "makedirs", real)
    record.snapshot(vanishing_run()[0])
    record.close()
    assert len(read_record(URL).snapshots) == 1


def test_a_remote_file_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/runs/first/gradwatch.jsonl", b"my notes\n")
    with pytest.raises(ValueError, match="is no record of gradwatch"):
        JsonlRecord(URL)
    gc.collect()
    assert content() == b"my notes\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        JsonlRecord("nowhere://runs/gradwatch.jsonl")


@pytest.mark.parametrize("path", ["logs/a.jsonl", "/logs/a.jsonl", "logs/odd://a.jsonl", Path("C:/a"), Path("odd:/a")])
def test_local_paths_stay_local(path: str | Path) -> None:
    assert remote_url(path) == ""


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    with closing(JsonlRecord(f"file://{tmp_path}/logs/gradwatch.jsonl")) as record:
        record.snapshot(vanishing_run()[0])
    assert record.path == tmp_path / "logs" / "gradwatch.jsonl"
    assert len(read_record(tmp_path / "logs" / "gradwatch.jsonl").snapshots) == 1
    assert len(read_record(f"file://{tmp_path}/logs/gradwatch.jsonl").snapshots) == 1


@pytest.mark.parametrize("path", [URL, "gradwatch.jsonl"])
def test_a_record_that_nobody_closes_is_whole_once_it_is_forgotten(path: str) -> None:
    record = JsonlRecord(path)
    for snapshot in vanishing_run():
        record.snapshot(snapshot)
    assert record._close.atexit  # forgotten at the latest when the interpreter ends
    del record
    gc.collect()
    assert len(read_record(path).snapshots) == 3


def test_a_copy_that_is_closed_twice_is_uploaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = RemoteCopy(URL)
    copy.close()
    breaking(monkeypatch, RuntimeError("uploaded twice"))
    copy.close()
    assert copy.trouble == ""
