"""A monitor whose copy watched the fit, in this process or another, knows the record of that."""

from __future__ import annotations

import copy
import gc
import logging
import multiprocessing
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, loader, mlp, trainer

from gradwatch import GradientMonitor
from gradwatch.containment import say_once
from gradwatch.reporting.record import read_record
from gradwatch.short_runs.loop import ignore_finding
from gradwatch.shown import as_html

COPIES = {
    "deep": copy.deepcopy,
    "shallow": copy.copy,
    "pickled": lambda monitor: pickle.loads(pickle.dumps(monitor)),
    "of a copy": lambda monitor: copy.deepcopy(pickle.loads(pickle.dumps(monitor))),
}


@pytest.fixture(autouse=True)
def said_anew() -> None:
    say_once.cache_clear()


def quiet(**options: Any) -> GradientMonitor:
    return GradientMonitor(summary=False, on_finding=ignore_finding, **options)


def fit(folder: Path, monitor: GradientMonitor, steps: int = 12) -> None:
    trainer(folder, monitor, max_steps=steps).fit(Net(mlp(torch.nn.Sigmoid, 8)), loader())


def test_before_any_fit_there_is_none() -> None:
    monitor = quiet()
    assert monitor.last_run() is None
    assert repr(monitor) == "<GradientMonitor: no step yet>"
    assert "has measured no step yet" in as_html(monitor)


@pytest.mark.parametrize("how", COPIES)
def test_the_run_of_a_copy_is_found(tmp_path: Path, how: str) -> None:
    monitor = quiet()
    fit(tmp_path, COPIES[how](monitor))
    place = tmp_path / "gradwatch_logs" / "gradwatch.jsonl"
    run = monitor.last_run()
    assert run is not None
    assert [snapshot.step for snapshot in run.snapshots] == [*range(12)]
    assert [finding.kind for finding in run.findings] == ["vanishing"]
    assert [diagnosis.cause for diagnosis in run.diagnoses or ()] == ["saturating activation"]
    assert repr(monitor) == f"<GradientMonitor: {monitor.elsewhere}>"
    assert monitor.elsewhere.endswith(f"last_run() reads its record, {place}")
    shown = as_html(monitor)
    assert "a copy of it did" in shown
    assert "vanishing since step 0" in shown
    assert not any(Path(tempfile.gettempdir()).glob(f"*{monitor._lineage._key}*"))


def test_an_empty_monitor_says_once_where_the_run_is(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    monitor = quiet()
    fit(tmp_path, copy.deepcopy(monitor))
    recwarn.clear()
    assert monitor.findings == monitor.findings == monitor.history == []
    assert monitor.diagnosis() == []
    assert len(recwarn) == 1
    assert "watched no fit, and a copy of it did" in str(recwarn[0].message)
    assert recwarn[0].filename == __file__


def test_the_report_is_that_of_the_copy(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    monitor = quiet()
    fit(tmp_path, copy.deepcopy(monitor))
    page = monitor.report()
    assert page.title == "Net"
    assert "saturating activation" in page.html


def test_its_own_run_is_its_last_one_too(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for options in ({}, {"record_path": False}):
        monitor = quiet(**options)
        fit(tmp_path, monitor)
        run = monitor.last_run()
        assert run is not None
        assert [snapshot.step for snapshot in run.snapshots] == [*range(12)]
        assert run.settings["model"] == "Net"
        assert run.diagnoses
        assert repr(monitor) == "<GradientMonitor: 12 steps, 1 finding>"
    assert not any("gradwatch" in str(warning.message) for warning in recwarn)


def test_the_latest_counts(tmp_path: Path) -> None:
    monitor = quiet()
    for steps in (2, 3):
        fit(tmp_path, copy.deepcopy(monitor), steps)
    assert len(monitor.last_run().snapshots) == 3  # type: ignore[union-attr]
    fit(tmp_path, monitor, 4)
    assert len(monitor.last_run().snapshots) == 4  # type: ignore[union-attr]
    fit(tmp_path, copy.deepcopy(monitor), 1)
    assert len(monitor.last_run().snapshots) == 1  # type: ignore[union-attr]
    assert len(monitor.history) == 4
    assert monitor.elsewhere == ""


def test_a_fit_of_no_step_is_its_own(tmp_path: Path) -> None:
    monitor = quiet()
    trainer(tmp_path, monitor, limit_train_batches=0, max_epochs=1).fit(Net(mlp()), loader())
    assert monitor.elsewhere == ""


def test_monitors_do_not_share_runs(tmp_path: Path) -> None:
    monitor, other = quiet(), quiet()
    fit(tmp_path, other)
    assert monitor.last_run() is None
    assert monitor.elsewhere == ""


def test_a_record_that_is_gone_is_said(tmp_path: Path) -> None:
    monitor = quiet()
    fit(tmp_path, copy.deepcopy(monitor))
    (tmp_path / "gradwatch_logs" / "gradwatch.jsonl").unlink()
    assert "cannot be read" in as_html(monitor)
    with pytest.raises(FileNotFoundError):
        monitor.last_run()


def in_a_process(monitor: GradientMonitor, folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fit(folder, monitor)


@pytest.mark.parametrize("start", sorted({"spawn", "fork"} & set(multiprocessing.get_all_start_methods())))
def test_the_run_in_another_process_is_found(tmp_path: Path, start: str) -> None:
    monitor = quiet()
    process = multiprocessing.get_context(start).Process(target=in_a_process, args=(monitor, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    run = monitor.last_run()
    assert run is not None
    assert [snapshot.step for snapshot in run.snapshots] == [*range(12)]
    notes = Path(tempfile.gettempdir()).glob(f"gradwatch-{monitor._lineage._key}*")
    (note,) = notes
    del monitor
    gc.collect()
    assert not note.exists()


def test_the_checkpoint_holds_nothing_of_it(tmp_path: Path) -> None:
    monitor = quiet()
    run = trainer(tmp_path, monitor, max_steps=2)
    run.fit(Net(mlp()), loader())
    run.save_checkpoint(tmp_path / "two.ckpt")
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)
    assert monitor._lineage._key not in str(saved)


def test_a_run_that_goes_on_is_read_with_its_causes(tmp_path: Path) -> None:
    monitor = quiet()
    fit(tmp_path, copy.deepcopy(monitor))
    path = tmp_path / "gradwatch_logs" / "gradwatch.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if '"type": "diagnoses"' not in line]
    path.write_text("".join(lines))
    assert read_record(path).diagnoses is None
    run = monitor.last_run()
    assert run is not None
    assert [diagnosis.cause for diagnosis in run.diagnoses or ()] == ["saturating activation"]
