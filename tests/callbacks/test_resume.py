"""A run that is resumed goes on as the run that was never interrupted: measured steps, findings, histories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import assert_no_hooks
from small_fits import Regression, fit, fit_until, trainer
from torch import nn

from gradwatch import Finding, GradientMonitor, Snapshot, default_detectors, watch
from gradwatch.pipeline.intake import History


class Noticed:
    """Open from one measured step to another, and two steps late."""

    patience = 3

    def __call__(self, snapshot: Snapshot) -> Finding | None:
        if 5 <= snapshot.step < 18:
            return Finding("noticed", ("net.0",), snapshot.step, 2.0, 1.0, "noticed")
        return None


def relu_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


def model() -> Regression:
    return Regression(net=relu_net, optimizer=torch.optim.SGD, bad_batches=(22,))


def monitor() -> GradientMonitor:
    return GradientMonitor(
        every_n_steps=4, dense_steps=3, detectors=[*default_detectors(), Noticed()],
        on_finding=lambda finding: None, total_norm_every_step=True, summary=False,
    )  # fmt: skip


# In the dense steps, between measured steps, while a finding is about to open, while it is open, and as it closes.
@pytest.mark.parametrize("stop", [2, 6, 7, 11, 19])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole, resumed = monitor(), monitor()
    fit(whole, model(), max_steps=30)
    checkpoint = fit_until(stop, tmp_path, monitor(), model())
    fit(resumed, model(), max_steps=30, ckpt_path=checkpoint)
    assert [finding.kind for finding in whole.findings] == ["noticed", "nonfinite"]
    assert resumed.findings == whole.findings
    assert [snapshot.step for snapshot in resumed.history] == [snapshot.step for snapshot in whole.history]
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert_same(one, other)
    assert resumed.diagnosis() == whole.diagnosis()
    assert text(resumed.state_dict()) == text(whole.state_dict())


def assert_same(one: Snapshot, other: Snapshot) -> None:
    for name, value in vars(one).items():
        np.testing.assert_equal(getattr(other, name), value, err_msg=f"{name} of step {one.step}")
        assert type(getattr(other, name)) is type(value), name


def text(state: dict[str, Any]) -> str:
    return json.dumps(state, sort_keys=True)


def test_a_checkpoint_is_plain_and_small(tmp_path: Path) -> None:
    checkpoint = fit_until(12, tmp_path, monitor(), model())
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["GradientMonitor"]
    assert len(text(state)) < 25_000
    assert json.loads(text(state)).keys() == state.keys()


def test_of_a_long_history_a_hundred_snapshots_are_kept_spread_over_the_run() -> None:
    history, restored = History(500), History(500)
    for step in range(3000):
        history.add(Snapshot(step, ("a",), grad_norm=[step], calls={"a": np.array([1.0, step])}))
    restored.load_state_dict(json.loads(json.dumps(history.state_dict())))
    steps = [snapshot.step for snapshot in restored]
    assert 50 <= len(steps) <= 100
    assert (steps[0], steps[-1]) == (0, 2999)
    assert max(np.diff(steps)) <= 3000 / 50 * 2
    for snapshot in restored:
        assert_same(snapshot, next(one for one in history if one.step == snapshot.step))


def test_a_checkpoint_of_an_older_version_is_taken() -> None:
    watcher = watch(nn.Linear(1, 1))
    ledger = watcher.state_dict()["ledger"]
    watcher.load_state_dict({"steps": 7, "ledger": ledger})
    assert watcher.steps == 7
    assert watcher.history == []


def test_another_fit_of_the_same_trainer_goes_on(tmp_path: Path) -> None:
    whole, parts = monitor(), monitor()
    fit(whole, model(), max_steps=30)
    run = trainer(parts, max_steps=10)
    twice = fit(model=model(), max_steps=0)  # the same initial weights
    for steps in (10, 30):
        run.fit_loop.epoch_loop.max_steps = steps
        run.fit(twice)
        assert_no_hooks(twice)
    assert parts.findings == whole.findings
    for one, other in zip(whole.history, parts.history, strict=True):
        assert_same(one, other)


def test_another_trainer_starts_anew(tmp_path: Path) -> None:
    used = monitor()
    for _ in range(2):
        fit(used, model(), max_steps=10)
        assert [snapshot.step for snapshot in used.history][:3] == [0, 1, 2]
        assert used.state_dict()["steps"] == 10
