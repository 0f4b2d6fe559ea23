"""Faults of processes: one is killed, and of two only the second one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from zoo_learner import STEPS, TRUSTED, Learner, Outcome, assert_same_end, in_one_line, outcome_of, trainer
from zoo_ranked import trained_by_two

from gradwatch import GradientMonitor
from gradwatch.reporting.record import read_record

LAST = 9  # the step of the last checkpoint before the process is killed


class KillsItself(Callback):
    """Ends the process at once, as the kernel does where memory is short."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == LAST:
            time.sleep(1.1)  # lines of the record that come within a second wait for the next one
        if trainer.global_step == LAST + 3:
            os.kill(os.getpid(), signal.SIGKILL)


def to_be_killed(folder: Path) -> None:
    keep = ModelCheckpoint(folder, "last", every_n_train_steps=LAST)
    fit = trainer(folder, monitor_of(folder), keep, KillsItself(), max_epochs=2, enable_checkpointing=True)
    fit.fit(Learner())


def monitor_of(folder: Path) -> GradientMonitor:
    return GradientMonitor(1, record_path=folder / "gradwatch.jsonl", on_finding=lambda finding: None, on_error="raise")


def resumed(folder: Path, *callbacks: Callback) -> Outcome:
    model = Learner()
    fit = trainer(folder, *callbacks, max_epochs=2)
    fit.fit(model, ckpt_path=folder / "last.ckpt", **TRUSTED)
    return outcome_of(model)


def test_a_killed_run_is_read_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"from test_faults_in_processes import *; to_be_killed(Path({str(tmp_path)!r}))"
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": here}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    before = read_record(tmp_path / "gradwatch.jsonl")
    steps = [snapshot.step for snapshot in before.snapshots]
    assert steps == list(range(len(steps)))
    assert len(steps) >= LAST

    monitor = monitor_of(tmp_path)
    assert_same_end(resumed(tmp_path), resumed(tmp_path, monitor))
    after = read_record(tmp_path / "gradwatch.jsonl")
    assert [snapshot.step for snapshot in after.snapshots] == list(range(len(after.snapshots)))
    assert len(after.snapshots) > STEPS
    assert after.damaged == 0
    assert monitor.out_of_service == []
    assert "not watched" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return trained_by_two(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize(("what", "part"), [("detector", "FailsInOneProcess"), ("layer", "layer net.0")])
def test_a_fault_in_one_of_two_processes(what: str, part: str, results: dict[str, list[dict[str, Any]]]) -> None:
    for bare, watched in zip(results["bare"], results[what], strict=True):
        assert bare["weights"].keys() == watched["weights"].keys()
        assert all(torch.equal(value, watched["weights"][name]) for name, value in bare["weights"].items())
    first, second = results[what]
    assert first["steps"] == second["steps"] == list(range(2 * STEPS))
    assert [part in failure and "since step 7" in failure for failure in second["failures"]] == [True]
    (said,) = [*first["said"], *second["said"]]
    assert part in said
    assert "not watched since step 7" in in_one_line(first["printed"] + second["printed"])
