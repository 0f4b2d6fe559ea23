"""Records are strict JSON, and come back from it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shown_runs import FINDING, INF, NAN, vanishing_run

from gradwatch.containment import OutOfService
from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.record import JsonlRecord, read_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "gradwatch.jsonl"


def write(path: Path, *things: Any) -> None:
    record = JsonlRecord(path)
    for thing in things:
        add = {Snapshot: record.snapshot, Finding: record.finding, OutOfService: record.out_of_service}
        add[type(thing)](thing)
    record.close()
    record.close()


def assert_same(one: Snapshot, other: Snapshot) -> None:
    for field in fields(Snapshot):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, (np.ndarray, float)):
            np.testing.assert_allclose(left, right, rtol=1e-5, err_msg=field.name)
        elif field.name == "calls":
            np.testing.assert_equal({k: v.tolist() for k, v in left.items()}, {k: v.tolist() for k, v in right.items()})
        else:
            assert left == right


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"skipped": True, "loss": INF, "total_norm": NAN},
        {"calls": {"net.1": np.array([1e-20, INF, NAN, 0.5])}},
        {
            "trace_step": np.array([1234567, 1234568]),
            "trace_loss": np.array([1.5, INF]),
            "trace_total_norm": np.array([-INF, 1e30]),
        },
        {"step": 12345678},
        {"param_grad_norm": np.full(8, NAN)},
    ],
)
def test_a_snapshot_comes_back(path: Path, change: dict[str, Any]) -> None:
    snapshot = replace(vanishing_run()[0], **change)
    write(path, snapshot)
    (back,), _ = read_record(path)
    assert_same(snapshot, back)


def test_findings_come_back_as_they_were_written_last(path: Path) -> None:
    other = replace(FINDING, layers=("head",), value=INF)
    grown = replace(FINDING, layers=("net.1", "net.3", "net.5"))
    closed = replace(grown, closed_step=7)
    write(path, FINDING, other, grown, closed)
    assert read_record(path)[1] == [closed, other]


RECORD = r"""
{"type": "header", "format": "gradwatch", "version": 1, "layers": ["body.0", "head \u00e9"], "kinds": ["LSTM", \
"Linear"], "params": ["body.0.w", "head.w"], "left_out": ["old.w"]}
{"type": "snapshot", "step": 7, "loss": "inf", "total_norm": 4, "total_norm_after": 0.25, "learning_rate": 0.001, \
"input_rms": 1.5, "loss_scale": 65536, "optimizer": "AdamW", "dtype": "float16", "skipped": true, \
"grad_norm": [0.333333, "inf"], "weight_norm": [1.23457e+08, null], "nonfinite": [0, 2], "size": [12, 4], \
"param_grad_norm": [null, 2e-20], "trace_loss": [2.25, "-inf"], "trace_total_norm": [null, 1e+30], \
"calls": {"body.0": [1e-09, "inf", null, 1]}, "trace_step": [6, 7]}
{"type": "finding", "kind": "spike", "layers": ["loss"], "step": 7, "value": 123457000.0, "threshold": 5, \
"message": "a \"spike\"", "severity": "error", "closed_step": null}
{"type": "finding", "kind": "vanishing", "layers": ["body.0"], "step": 7, "value": 1e-07, "threshold": 0.001, \
"message": "it vanishes", "severity": "warning", "closed_step": 8}
{"type": "out_of_service", "part": "layer x", "step": 8, "error": "RuntimeError: no storage"}
{"type": "header", "format": "gradwatch", "version": 1, "layers": ["one"], "kinds": [""], "params": [], "left_out": []}
{"type": "snapshot", "step": 9}
""".replace("\\\n", "").lstrip()


def test_the_format_is_kept_byte_for_byte(path: Path) -> None:
    full = Snapshot(
        7,
        ("body.0", "head \u00e9"),
        ("LSTM", "Linear"),
        grad_norm=[1 / 3, INF],
        weight_norm=[123456789.0, NAN],
        nonfinite=[0, 2],
        size=[12, 4],
        params=("body.0.w", "head.w"),
        left_out=("old.w",),
        param_grad_norm=[NAN, 2e-20],
        calls={"body.0": [1e-9, INF, NAN, 1.0]},
        total_norm=4,
        total_norm_after=0.25,
        loss=INF,
        skipped=True,
        optimizer="AdamW",
        learning_rate=1e-3,
        input_rms=1.5,
        dtype="float16",
        loss_scale=65536.0,
        trace_step=[6, 7],
        trace_loss=[2.25, -INF],
        trace_total_norm=[NAN, 1e30],
    )
    spike = Finding("spike", ("loss",), 7, 123456789.0, np.float32(5.0), 'a "spike"', "error")
    closed = Finding("vanishing", ("body.0",), 7, 1e-7, 1e-3, "it vanishes", closed_step=np.int64(8))
    out = OutOfService("layer x", 8, "RuntimeError: no storage")
    write(path, full, spike, closed, out, Snapshot(9, ("one",)))
    assert path.read_text() == RECORD


def test_a_record_of_the_first_version_is_read(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(RECORD)  # its headers know nothing of types and groups
    record = read_record(path)
    assert (record.damaged, [snapshot.step for snapshot in record.snapshots]) == (0, [7, 9])


def test_groups_stand_in_the_header_and_what_is_carried_over_in_its_step(path: Path) -> None:
    groups = {"param_dtypes": ("float32",), "param_groups": ("SGD 0",), "groups": ("SGD 0",)}
    first = Snapshot(0, ("a",), params=("a.w",), param_update_norm=[0.5], group_learning_rate=[0.1], **groups)
    second = replace(first, step=1, carried_over=("a.w",))
    write(path, first, second)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["type"], line.get("carried_over")) for line in lines] == [
        ("header", None), ("snapshot", None), ("snapshot", ["a.w"]),
    ]  # fmt: skip
    assert lines[0]["groups"] == ["SGD 0"]
    assert [snapshot.to_dict() for snapshot in read_record(path)[0]] == [first.to_dict(), second.to_dict()]


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not strict JSON")


def test_every_line_is_strict_json_with_a_type(path: Path) -> None:
    odd = replace(vanishing_run()[0], loss=NAN, total_norm=INF)
    write(path, odd, replace(FINDING, value=INF, threshold=NAN), odd)
    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["header", "snapshot", "finding", "snapshot"]
    assert (lines[1]["total_norm"], lines[1]["grad_norm"][1]) == ("inf", None)
    assert "loss" not in lines[1]
    assert "layers" not in lines[1]


def test_new_layers_get_a_new_header(path: Path) -> None:
    write(path, Snapshot(0, ("a",), grad_norm=[1.0]), Snapshot(1, ("a", "b"), grad_norm=[1.0, 2.0]))
    snapshots, _ = read_record(path)
    assert [snapshot.layers for snapshot in snapshots] == [("a",), ("a", "b")]


def test_each_line_is_in_the_file_at_once(path: Path) -> None:
    with closing(JsonlRecord(path)) as record:
        record.snapshot(vanishing_run()[0])
        assert len(read_record(path)[0]) == 1


def test_of_fast_snapshots_the_later_ones_wait_for_a_finding_or_for_a_second_to_pass(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    run = vanishing_run()
    with closing(JsonlRecord(path)) as record:
        record.snapshot(run[0])
        record.snapshot(run[1])
        assert len(read_record(path)[0]) == 1
        record.finding(Finding("vanishing", ("a",), 1, 1e-9, 1e-3, "it vanishes"))
        assert len(read_record(path)[0]) == 2
        record.snapshot(run[2])
        assert len(read_record(path)[0]) == 2
        monkeypatch.setattr("time.monotonic", lambda: 1.1)
        record.snapshot(run[2])
        assert len(read_record(path)[0]) == 3


@pytest.mark.parametrize("cut", [1, 30, 300])
def test_a_last_line_cut_short_is_left_out_and_mended(path: Path, cut: int) -> None:
    run = vanishing_run()
    write(path, *run[:2])
    path.write_bytes(path.read_bytes()[:-cut])
    assert [snapshot.step for snapshot in read_record(path)[0]] == [0] if cut > 1 else [0, 1]
    write(path, run[2])
    assert [snapshot.step for snapshot in read_record(path)[0]] == [0, 2]


def test_a_record_cut_in_its_first_line_starts_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"typ')
    write(path, *vanishing_run())
    assert len(read_record(path)[0]) == 3


def test_a_resumed_run_goes_on_where_its_checkpoint_was(path: Path) -> None:
    run = vanishing_run(steps=6)
    late = replace(FINDING, kind="dead", step=1)  # opened at step 3, after patience, and dated back
    write(path, run[0], FINDING, run[1], run[2], run[3], late, replace(FINDING, closed_step=3))
    write(path, run[2], FINDING, run[4])
    snapshots, findings = read_record(path)
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 2, 4]
    assert findings == [FINDING]


def test_a_second_run_in_the_same_file_is_what_counts(path: Path) -> None:
    write(path, *vanishing_run(steps=4), FINDING)
    write(path, *vanishing_run(steps=2))
    snapshots, findings = read_record(path)
    assert ([snapshot.step for snapshot in snapshots], findings) == ([0, 1], [])


def test_a_file_of_somebody_else_is_not_written_to(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("my notes\n")
    with pytest.raises(ValueError, match=r"gradwatch\.jsonl exists and is no record of gradwatch; give another path"):
        JsonlRecord(path)
    assert path.read_text() == "my notes\n"


def test_a_newer_format_is_refused_and_an_unknown_line_is_not(path: Path) -> None:
    write(path, *vanishing_run())
    with path.open("a") as file:
        file.write('{"type": "remark", "text": "hello"}\n')
    assert len(read_record(path)[0]) == 3
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="format version 2; this gradwatch reads up to 1: update it"):
        read_record(path)
