"""A record in Parquet: it reads like one in JSON, and a run that is killed loses no part of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from gradwatch import Diagnosis, Finding, Snapshot
from gradwatch.cli import main
from gradwatch.containment import OutOfService
from gradwatch.reporting.parquet import ParquetRecord, open_record
from gradwatch.reporting.reading import LATEST
from gradwatch.reporting.record import JsonlRecord, Record, read_record

pytest.importorskip("pyarrow")

LAYERS = ("first", "second", "last")
VANISHING = Finding("vanishing", ("first",), 3, 1e-7, 1e-3, "it vanishes")


def snapshot(step: int, scale: float = 1.0) -> Snapshot:
    norms = np.array([1e-7, 1 / 3, 1e200]) * scale
    return Snapshot(
        step, LAYERS, kinds=("Linear", "ReLU", "Linear"), grad_norm=norms, gain=[np.nan, np.inf, -1.5 * step],
        params=("first.weight",), param_grad_norm=[step / 7], calls={"last": [1.0, np.inf]}, feeds=("1", "2", ""),
        loss=1.0 / (step + 1), trace_step=[step], trace_loss=[1.0 / (step + 1)], skipped=step == 2,
    )  # fmt: skip


def write(record: ParquetRecord | JsonlRecord, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        record.snapshot(snapshot(step, scale))
        if step == 0:
            record.about({"model": "Net"}, {"": "Net"})
        if step == 3:
            record.finding(VANISHING)
    record.out_of_service(OutOfService("layer last", 5, "RuntimeError: a"))
    record.diagnoses([Diagnosis("initialization too small", "It is small.", 0.5, (VANISHING,), ("He",))])
    record.close()


def assert_same(one: Record, other: Record) -> None:
    assert [each.step for each in one.snapshots] == [each.step for each in other.snapshots]
    for a, b in zip(one.snapshots, other.snapshots, strict=True):
        for name in (each.name for each in fields(Snapshot)):
            x, y = getattr(a, name), getattr(b, name)
            if isinstance(x, np.ndarray):
                np.testing.assert_allclose(x, y, rtol=2e-7, atol=0)
            else:
                assert str(x) == str(y)
    assert one.findings == other.findings
    assert one.diagnoses == other.diagnoses
    assert (one.out_of_service, one.settings, one.modules) == (other.out_of_service, other.settings, other.modules)


@pytest.mark.parametrize("part_bytes", [1, 2000, 10**9], ids=["a part a step", "some parts", "one part"])
def test_it_reads_like_a_record_in_json(tmp_path: Path, part_bytes: int) -> None:
    write(ParquetRecord(tmp_path / "run.parquet", part_bytes), range(8))
    write(JsonlRecord(tmp_path / "run.jsonl"), range(8))
    parts = sorted(path.name for path in (tmp_path / "run.parquet").iterdir())
    assert parts == [f"part-{i + 1:05}.parquet" for i in range(len(parts))]
    assert len(parts) == {1: 9, 10**9: 1}.get(part_bytes, len(parts))
    assert_same(read_record(tmp_path / "run.parquet"), read_record(tmp_path / "run.jsonl"))


def test_a_resumed_run_continues_it(tmp_path: Path) -> None:
    place = tmp_path / "run.parquet"
    write(ParquetRecord(place, 1000), range(8))
    write(ParquetRecord(place, 1000), range(5, 10), scale=2.0)
    read = read_record(place)
    assert [each.step for each in read.snapshots] == list(range(10))
    assert read.snapshots[4].grad_norm[1] == pytest.approx(1 / 3, rel=1e-5)
    assert read.snapshots[5].grad_norm[1] == pytest.approx(2 / 3, rel=1e-5)


PROGRAM = """
import sys
from test_parquet import ParquetRecord, snapshot

record = ParquetRecord(sys.argv[1], 20_000)
for step in range(10**9):
    record.snapshot(snapshot(step))
    if step == 2000:
        print("far enough", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_run_that_is_killed_loses_its_last_second_at_most(tmp_path: Path) -> None:
    place = tmp_path / "run.parquet"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", PROGRAM, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"far enough\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    read = read_record(place)
    steps = [each.step for each in read.snapshots]
    assert steps == list(range(len(steps)))
    assert len(steps) > 1900
    assert read.damaged == 0
    write(ParquetRecord(place), range(len(steps), len(steps) + 8))
    assert len(read_record(place).snapshots) == len(steps) + 8


def test_lines_that_are_in_a_part_too_count_once(tmp_path: Path) -> None:
    place = tmp_path / "run.parquet"
    record = ParquetRecord(place)
    for step in range(4):
        record.snapshot(snapshot(step))
    record.finding(VANISHING)
    shutil.copy(place / LATEST, tmp_path / "kept")
    record.close()
    shutil.copy(tmp_path / "kept", place / LATEST)  # as if killed after the part had its name
    read = read_record(place)
    assert [each.step for each in read.snapshots] == [0, 1, 2, 3]
    assert read.findings == [VANISHING]


def test_what_cannot_become_a_part_stays_as_lines(tmp_path: Path) -> None:
    place = tmp_path / "run.parquet"
    record = ParquetRecord(place, 500)
    (place / "part-00001.part").mkdir()  # nothing can be written there
    for step in range(8):
        record.snapshot(snapshot(step))
    assert "are in no part (IsADirectoryError: Is a directory)" in record.trouble
    (place / "part-00001.part").rmdir()
    record.close()
    assert record.trouble == ""
    assert [path.name for path in place.iterdir()] == ["part-00001.parquet"]
    assert len(read_record(place).snapshots) == 8


@pytest.mark.filterwarnings("ignore:gradwatch:UserWarning")
def test_a_damaged_part_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    place = tmp_path / "run.parquet"
    write(ParquetRecord(place, 1), range(8))
    (place / "part-00003.parquet").write_bytes(b"PAR1 and then nothing")
    read = read_record(place)
    assert read.damaged == 1
    assert [each.step for each in read.snapshots] == [0, 1, 3, 4, 5, 6, 7]


def test_report_and_compare_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly")
    write(ParquetRecord(tmp_path / "run" / "gradwatch.parquet", 1000), range(8))
    write(JsonlRecord(tmp_path / "gradwatch.jsonl"), range(8))
    main(["report", str(tmp_path / "run")])
    assert (tmp_path / "run" / "gradwatch.html").exists()
    main(["compare", str(tmp_path / "run" / "gradwatch.parquet"), str(tmp_path / "gradwatch.jsonl")])
    assert "The runs are equal in all 8 steps" in " ".join(capsys.readouterr().out.split())


def test_reading_is_bounded_in_memory(tmp_path: Path) -> None:
    record = open_record(tmp_path / "run.parquet")
    for step in range(100):
        record.snapshot(Snapshot(step, tuple(map(str, range(1000))), grad_norm=np.ones(1000)))
    record.close()
    read = read_record(tmp_path / "run.parquet", most_bytes=20 * 8000)
    steps = [each.step for each in read.snapshots]
    assert steps[0] == 0
    assert steps[-1] == 99
    assert 10 <= len(steps) <= 21


def test_a_url_is_refused_and_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is remote, where no part can be renamed"):
        open_record("memory://runs/run.parquet")
    assert isinstance(open_record(tmp_path / "run.jsonl"), JsonlRecord)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="needs pyarrow; install it with: pip install pyarrow"):
        open_record(tmp_path / "other.parquet")
