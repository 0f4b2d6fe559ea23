"""Numbers that reach the host some steps late, as those of a CUDA device do: nothing waits, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from models import Net, assert_no_hooks, loader, mlp, trainer
from torch import nn

from gradwatch import Finding, GradientError, GradientMonitor, GradientTransform, GradientWarning, Snapshot, watch
from gradwatch.pipeline import intake
from gradwatch.probe import scalars
from gradwatch.records import Array
from gradwatch.reporting.record import read_record
from gradwatch.transforms import Outcome, When

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


class Late(scalars.Copy):
    """A copy that arrives ``delay`` optimizer steps after it was sent, and notes when it was waited for."""

    is_deferred = True
    delay = 2
    now = 0
    waited: list[int]

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__(numbers)
        self.sent = Late.now

    @property
    def has_arrived(self) -> bool:
        return Late.now >= self.sent + Late.delay

    def numbers(self) -> Array:
        if not self.has_arrived:
            Late.waited.append(self.sent)
        return super().numbers()


@pytest.fixture(autouse=True)
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    Late.now, Late.delay, Late.waited = 0, 2, []
    monkeypatch.setattr(scalars, "Copy", Late)


class Clock(Callback):
    """Lets a step's time pass just before the monitor, which stands behind it, ends the step."""

    def on_train_batch_end(self, *_: Any) -> None:
        Late.now += 1


def finds(*steps: int) -> Any:
    def detector(snapshot: Snapshot) -> Finding | None:
        return (
            Finding("mine", ("0",), snapshot.step, 2.0, 1.0, f"at {snapshot.step}") if snapshot.step in steps else None
        )

    return detector


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(watcher: Any, model: nn.Module, steps: int) -> list[int | None]:
    """At which step each step's call gave a Snapshot."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    given = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        snapshot = watcher.step(optimizer, loss)
        given.append(None if snapshot is None else snapshot.step)
        Late.now += 1
    return given


def test_a_snapshot_comes_when_its_numbers_have_arrived_and_the_last_at_the_end() -> None:
    model = network()
    with watch(model, every_n_steps=3, dense_steps=2, detectors=[]) as watcher:
        assert train(watcher, model, 7) == [None, None, 0, 1, None, 3, None]
        assert Late.waited == []
        assert [snapshot.step for snapshot in watcher.history] == [0, 1, 3]
    assert [snapshot.step for snapshot in watcher.history] == [0, 1, 3, 6]
    assert Late.waited == [6]


def test_what_comes_late_is_what_came_at_once() -> None:
    histories, weights = [], []
    for delay in (0, 3):
        Late.delay = delay
        model = network()
        with watch(model, every_n_steps=2, total_norm_every_step=True) as watcher:
            train(watcher, model, 30)
        histories.append(watcher.history)
        weights.append(model.state_dict())
    for one, other in zip(*histories, strict=True):
        assert one.step == other.step
        for column in ("grad_norm", "grad_output_norm", "gain", "dead_fraction", "trace_step", "trace_loss"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_several_that_arrive_at_once_are_taken_in_order() -> None:
    model, seen = network(), []
    with watch(model, every_n_steps=1, detectors=[]) as watcher:
        watcher.intake.on_snapshot = lambda snapshot: seen.append(snapshot.step)
        Late.delay = 100
        assert train(watcher, model, 4) == [None] * 4
        Late.delay = 2
        assert train(watcher, model, 1) == [2]
        assert seen == [0, 1, 2]
    assert seen == [0, 1, 2, 3, 4]


def test_a_finding_is_announced_when_it_arrives_with_the_step_it_is_about() -> None:
    model, calls = network(), []
    with watch(model, detectors=[finds(50)], on_finding=calls.append) as watcher:
        train(watcher, model, 52)
        assert calls == []
        train(watcher, model, 1)
    assert [finding.step for finding in calls] == [50]
    measured = [snapshot.step for snapshot in watcher.history]
    assert measured == [*range(20), 50]  # the next one to look at again would have been 53


def test_raise_comes_late_and_at_the_latest_at_the_end() -> None:
    model = network()
    with pytest.raises(GradientError, match="at 1"), watch(model, detectors=[finds(1)], on_finding="raise") as watcher:
        train(watcher, model, 9)
    assert watcher.steps == 4
    with pytest.raises(GradientError, match="at 8"), watch(model, detectors=[finds(8)], on_finding="raise") as watcher:
        train(watcher, model, 9)
    assert watcher.steps == 9
    assert_no_hooks(model)


def test_a_finding_that_comes_at_the_end_hides_no_other_error() -> None:
    def broken() -> None:
        with watch(network(), detectors=[finds(0)], on_finding="raise") as watcher:
            train(watcher, watcher._probe.model, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()


def test_several_processes_take_a_snapshot_in_at_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_is_single_process", lambda: False)
    for delay in (0, 1, 100):  # whatever the device of one of them says
        Late.delay = delay
        model = network()
        with watch(model, every_n_steps=4, dense_steps=1, detectors=[]) as watcher:
            assert train(watcher, model, 8) == [None, None, 0, None, None, None, 4, None]


def monitored(tmp_path: Path, monitor: GradientMonitor, *callbacks: Callback, **options: Any) -> Any:
    run = trainer(tmp_path, Clock(), monitor, *callbacks, **options)
    run.fit(Net(mlp()), loader())
    return run


def test_a_fit_stops_a_little_later(tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False, detectors=[finds(4)], on_finding="stop")
    with pytest.warns(GradientWarning, match="at 4"):
        run = monitored(tmp_path, monitor)
    assert run.global_step == 7
    assert [snapshot.step for snapshot in monitor.history] == list(range(7))
    assert_no_hooks(run.lightning_module)


@pytest.mark.parametrize("last", [False, True])
def test_a_fit_raises_a_little_later_and_records_all(tmp_path: Path, last: bool) -> None:
    monitor = GradientMonitor(summary=False, detectors=[finds(9 if last else 4)], on_finding="raise")
    logger = CSVLogger(tmp_path, name="", version="run")
    with pytest.raises(GradientError, match="at 9" if last else "at 4"):
        monitored(tmp_path, monitor, logger=logger, max_steps=10)
    snapshots, findings = read_record(Path(logger.log_dir) / "gradwatch.jsonl")
    assert [snapshot.step for snapshot in snapshots] == list(range(10 if last else 7))
    assert [finding.step for finding in findings] == [9 if last else 4]


def test_transforms_that_wait_for_a_finding_act_from_when_it_is_known(tmp_path: Path) -> None:
    acted: list[int] = []

    def note(params: Any, context: Any) -> Outcome:
        acted.append(context.step)
        return Outcome()

    monitor = GradientMonitor(summary=False, detectors=[finds(*range(4, 30))], on_finding=lambda finding: None)
    monitored(tmp_path, monitor, GradientTransform(When("mine", note, own_kind=True)), max_steps=10)
    assert acted == [7, 8, 9]


def test_a_checkpoint_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "six", every_n_train_steps=6)
    calls: list[Finding] = []
    monitor = GradientMonitor(summary=False, detectors=[finds(5)], on_finding=calls.append)
    monitored(tmp_path, monitor, keep, max_steps=6, enable_checkpointing=True)
    assert [finding.step for finding in calls] == [5]  # announced at the end, not while saving
    state = torch.load(tmp_path / "six.ckpt", weights_only=True)["callbacks"]["GradientMonitor"]
    assert [snapshot["step"] for snapshot in state["history"]] == list(range(6))
    assert [finding["step"] for finding in state["ledger"]["findings"]] == [5]


def test_an_interrupted_fit_keeps_what_is_on_its_way(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("boom")

    monitor = GradientMonitor(summary=False, detectors=[finds(4)], on_finding="raise")
    with pytest.raises(RuntimeError, match="boom"):
        monitored(tmp_path, monitor, Broken())
    assert [snapshot.step for snapshot in monitor.history] == list(range(5))
    assert [finding.step for finding in monitor.findings] == [4]
