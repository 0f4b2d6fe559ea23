"""A disk that is full for a while: nothing raises, and only what came meanwhile is lost."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disks import Disk, disk
from shown_runs import FINDING, vanishing_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from gradwatch.containment import OutOfService
from gradwatch.records import Snapshot
from gradwatch.reporting import events as event_files
from gradwatch.reporting import record_files
from gradwatch.reporting.record import JsonlRecord, read_record
from gradwatch.reporting.tensorboard import TensorBoardReport

__all__ = ["disk"]
PART = 3 * 4096  # bytes: room for a few events or lines of `deep`
FULL = "OSError: No space left on device"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no Snapshot wait for the next."""
    monkeypatch.setattr(record_files, "_FLUSH_EVERY", -1.0)


def deep(step: int, count: int = 400) -> Snapshot:
    """A Snapshot whose line has more than a page."""
    return Snapshot(step, tuple(f"layers.{i}" for i in range(count)), grad_norm=[1.2345 + step] * count)


def steps(path: Path) -> list[int]:
    return [snapshot.step for snapshot in read_record(path).snapshots]


@pytest.mark.usefixtures("at_once")
def test_a_record_goes_on_and_says_what_it_lost(disk: Disk) -> None:
    path = disk.folder / "gradwatch.jsonl"
    with closing(JsonlRecord(path)) as record:
        record.snapshot(deep(0))
        disk.fill()
        for step in (1, 2, 3):
            record.snapshot(deep(step))
        record.finding(FINDING)
        assert record.lost == 4
        assert record.trouble == f"3 snapshots and 1 finding of steps 1 to 3 could not be written to {path} ({FULL})"
        disk.free()
        record.snapshot(deep(4))
        record.snapshot(deep(5))
    read = read_record(path)
    assert ([snapshot.step for snapshot in read.snapshots], read.lost, read.damaged) == ([0, 4, 5], 4, 0)
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["type"] for line in told] == ["header", "snapshot", "lost", "header", "snapshot", "snapshot"]
    assert told[2] == {"type": "lost", "snapshots": 3, "findings": 1, "first_step": 1, "last_step": 3}


@pytest.mark.usefixtures("at_once")
def test_half_a_line_is_cut_off_at_once(disk: Disk) -> None:
    path = disk.folder / "gradwatch.jsonl"
    with closing(JsonlRecord(path)) as record:
        record.snapshot(deep(0))
        whole = path.read_bytes()
        disk.fill(left=PART)
        record.snapshot(deep(1, count=3000))
        assert path.read_bytes() == whole
        disk.free()
        record.snapshot(deep(2))
    assert steps(path) == [0, 2]


def test_of_many_lines_that_waited_the_first_are_kept(disk: Disk) -> None:
    path = disk.folder / "gradwatch.jsonl"
    with closing(JsonlRecord(path)) as record:
        record.snapshot(deep(0))
        for step in range(1, 11):
            record.snapshot(deep(step))
        disk.fill(left=PART)
        record.finding(FINDING)
        disk.free()
    kept = steps(path)
    assert 2 < len(kept) < 10
    assert kept == list(range(len(kept)))
    assert record.lost == 12 - len(kept)
    assert read_record(path).lost == record.lost  # told at the end, though no line came after it


@pytest.mark.usefixtures("at_once")
def test_names_that_were_lost_are_written_again(disk: Disk) -> None:
    path = disk.folder / "gradwatch.jsonl"
    disk.fill()
    with closing(JsonlRecord(path)) as record:
        record.snapshot(deep(0))
        disk.free()
        record.snapshot(deep(1))
        disk.fill()
        record.snapshot(deep(2, count=300))
        record.snapshot(deep(3, count=200))
        disk.free()
        record.snapshot(deep(4, count=200))
    read = read_record(path)
    assert [(snapshot.step, len(snapshot.layers)) for snapshot in read.snapshots] == [(1, 400), (4, 200)]
    assert (read.lost, read.damaged) == (3, 0)
    with closing(JsonlRecord(path)) as record:
        record.snapshot(deep(5))
    assert steps(path) == [1, 4, 5]


@pytest.mark.usefixtures("at_once")
def test_a_disk_that_stays_full_raises_nothing(disk: Disk) -> None:
    path = disk.folder / "gradwatch.jsonl"
    record = JsonlRecord(path)
    record.snapshot(deep(0))
    disk.fill()
    record.snapshot(deep(1))
    record.close()
    record.close()
    assert "1 snapshot of step 1 could not be written" in record.trouble
    assert steps(path) == [0]
    with pytest.raises(ValueError, match=r"gradwatch\.jsonl is closed"):
        record.snapshot(deep(2))


@pytest.mark.usefixtures("at_once")
def test_what_went_out_of_service_is_written_when_there_is_room(disk: Disk) -> None:
    failure = OutOfService("layer fc", 7, "RuntimeError: no storage")
    with closing(JsonlRecord(disk.folder / "gradwatch.jsonl")) as record:
        disk.fill()
        record.out_of_service(failure)
        disk.free()
        record.snapshot(deep(8))
    assert record.trouble == ""
    assert read_record(record.path).out_of_service == [failure]


def test_a_file_that_may_no_longer_be_written_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    with closing(JsonlRecord(tmp_path / "logs" / "gradwatch.jsonl")) as record:
        record.snapshot(deep(0))
        monkeypatch.setattr(record_files, "write_some", fail)
        monkeypatch.setattr(record_files, "open_at_last_line", fail)
        record.finding(FINDING)
        record.finding(FINDING)
    assert record.trouble.endswith("(PermissionError: Permission denied)")
    assert steps(tmp_path / "logs" / "gradwatch.jsonl") == [0]


def events(folder: Path) -> list[Any]:
    return [event for path in sorted(folder.glob("events*")) for event in EventFileLoader(str(path)).Load()]


def scalar_steps(folder: Path, tag: str) -> list[int]:
    return [event.step for event in events(folder) for value in event.summary.value if value.tag == tag]


def drain(writer: SummaryWriter) -> None:
    """Wait for the writer's thread."""
    writer.flush()


def test_tensorboard_goes_on_and_so_does_the_users_own_logging(disk: Disk) -> None:
    writer = SummaryWriter(str(disk.folder))
    report, run = TensorBoardReport(writer), vanishing_run(steps=1)
    report.snapshot(run[0])
    drain(writer)
    disk.fill()
    for step in range(1, 5):
        report.snapshot(deep(step))
        writer.add_scalar("loss", 1.0, step)
        drain(writer)
    assert report.trouble.endswith(f"could not be written to TensorBoard's files ({FULL})")
    disk.free()
    for step in (5, 6):
        report.snapshot(deep(step))
        writer.add_scalar("loss", 1.0, step)
        drain(writer)
    writer.close()
    assert scalar_steps(disk.folder, "grad_norm/000 layers.0") == [5, 6]
    assert scalar_steps(disk.folder, "loss")[-2:] == [5, 6]


def test_a_layout_of_the_charts_that_was_lost_is_written_again(disk: Disk) -> None:
    writer = SummaryWriter(str(disk.folder))
    report = TensorBoardReport(writer)
    disk.fill()
    for step in range(6):
        if step == 3:
            disk.free()
        report.snapshot(deep(step))
        drain(writer)
    writer.close()
    layouts = EventAccumulator(str(disk.folder)).Reload().Tensors("custom_scalars__config__")
    assert len(layouts) == 1


def test_every_event_is_either_in_the_file_or_counted(disk: Disk) -> None:
    writer = SummaryWriter(str(disk.folder))
    report = TensorBoardReport(writer)
    disk.fill(left=PART)
    for step in range(20):
        report.snapshot(deep(step))
    drain(writer)
    disk.free()
    report.snapshot(deep(20))
    drain(writer)
    kept = scalar_steps(disk.folder, "grad_norm/000 layers.0")
    assert 0 < len(kept) < 20
    assert kept[-1] == 20
    assert report.trouble.startswith(f"{21 - len(kept)} event")
    assert TensorBoardReport(writer).trouble == ""  # a later fit tells of its own losses only
    writer.close()


def test_a_closed_writer_that_cannot_be_opened_is_tried_again_only_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SummaryWriter(str(tmp_path))
    report, run, now = TensorBoardReport(writer), vanishing_run(steps=1), [100.0]
    report.snapshot(run[0])
    writer.close()
    real, tries = writer._get_file_writer, []

    def fail() -> None:
        tries.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_files.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(writer, "_get_file_writer", fail)
    for step in range(1, 9):
        report.snapshot(replace(run[0], step=step))
    assert len(tries) == 1
    assert report.trouble == f"8 events could not be written to TensorBoard's files ({FULL})"
    monkeypatch.setattr(writer, "_get_file_writer", real)
    now[0] += 31
    report.snapshot(replace(run[0], step=9))
    writer.close()
    # Names of files within a second have no order.
    assert sorted(scalar_steps(tmp_path, "0 total/1 grad_norm_total")) == [0, 9]


def test_record_and_tensorboard_on_one_full_disk(disk: Disk) -> None:
    path = disk.folder / "gradwatch.jsonl"
    writer = SummaryWriter(str(disk.folder))
    with closing(JsonlRecord(path)) as record:
        report = TensorBoardReport(writer)
        for step in range(30):
            if step in (10, 20):
                disk.fill() if step == 10 else disk.free()
            record.snapshot(deep(step, count=100))
            record.finding(FINDING)
            report.snapshot(deep(step, count=100))
            report.findings([FINDING], step=step)
            drain(writer)
    writer.close()
    assert record.trouble
    assert report.trouble
    assert {*range(10), *range(21, 30)} <= set(steps(path)) < set(range(30))
    assert {*range(10), *range(21, 30)} <= set(scalar_steps(disk.folder, "grad_norm/00 layers.0")) < set(range(30))


def test_a_file_that_fails_to_flush_or_close_is_told_of(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    report = TensorBoardReport(writer)
    report.snapshot(deep(0))
    file = writer.file_writer.event_writer._async_writer._worker._record_writer._writer

    def fail() -> None:
        raise OSError(5, "Input/output error")

    file.flush = fail
    writer.close()
    assert report.trouble == "the end of TensorBoard's file may be missing (OSError: Input/output error)"
