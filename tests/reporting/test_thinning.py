"""A record that grows large is thinned: by a rule, with words, and without the loss of a loss."""

import json
from pathlib import Path

import numpy as np
import pytest

from gradwatch import Finding, Snapshot
from gradwatch.reporting.html.report import write_report
from gradwatch.reporting.record import JsonlRecord, read_record

LAYERS = tuple(f"layers.{i}" for i in range(500))
BOUND = 400_000
STEPS = 800  # lines of about 3 kB, most of it one column


def snapshot(step: int) -> Snapshot:
    """A measured step, five after the last, with the losses between them."""
    steps = list(range(max(step - 4, 0), step + 1))
    norms = {"grad_norm": np.full(500, 1.25), "loss": float(step)}
    return Snapshot(step, LAYERS, **norms, trace_step=steps, trace_loss=[float(each) for each in steps])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> JsonlRecord:
    record = JsonlRecord(tmp_path_factory.mktemp("thinned") / "gradwatch.jsonl", most_bytes=BOUND)
    for step in range(0, 5 * STEPS, 5):
        record.snapshot(snapshot(step))
    record.finding(Finding("vanishing", ("layers.0",), 0, 1e-7, 1e-3, "it vanishes"))
    record.diagnoses([])
    record.close()
    return record


def test_the_file_ends_at_its_bound_and_covers_the_run(written: JsonlRecord) -> None:
    assert 0.8 * BOUND < Path(written.path).stat().st_size < 1.2 * BOUND
    steps = [each.step for each in read_record(written.path).snapshots]
    assert steps[0] == 0
    assert steps[-1] == 5 * (STEPS - 1)
    distances = np.diff(steps[:-1])
    assert (np.diff(distances) >= 0).all()
    assert set(distances) >= {5, 10, 20, 40}


def test_what_is_left_out_leaves_its_losses_to_the_next(written: JsonlRecord) -> None:
    record = read_record(written.path)
    steps = np.concatenate([each.trace_step for each in record.snapshots])
    assert steps.tolist() == list(range(5 * (STEPS - 1) + 1))
    assert np.concatenate([each.trace_loss for each in record.snapshots]).tolist() == steps.tolist()


def test_the_record_and_its_report_say_so(written: JsonlRecord, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    lines = [json.loads(line) for line in Path(written.path).read_text().splitlines()]
    said = [(line["every"], line["step"]) for line in lines if line["type"] == "thinned"]
    assert [every for every, _ in said] == [2 ** (i + 1) for i in range(len(said))]
    record = read_record(written.path)
    assert record.thinned == said[-1][0]
    assert f"fewer measured steps from step {said[0][1]} on, at the end one in {record.thinned}" in written.trouble
    write_report(tmp_path / "report.html", record, [], "a run")
    assert f"one in {record.thinned} measured steps" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_small_record_is_whole(tmp_path: Path) -> None:
    record = JsonlRecord(tmp_path / "gradwatch.jsonl")
    for step in range(0, 50, 5):
        record.snapshot(snapshot(step))
    record.close()
    assert record.trouble == ""
    read = read_record(record.path)
    assert len(read.snapshots) == 10
    assert read.thinned == 1
