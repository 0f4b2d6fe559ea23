"""The Snapshots of a plain loop: history, findings, and the reaction to a finding."""

from __future__ import annotations

import inspect
import json
import warnings

import numpy as np
import pytest
from torch import nn
from watched_loops import finds, hooks_on, measured, network, train

from gradwatch import Finding, GradientError, GradientWarning, Snapshot, watch


@pytest.mark.parametrize("size", [2, 3, 10, 31])
def test_the_history_is_bounded_and_covers_the_run(size: int) -> None:
    model = nn.Linear(6, 1)
    with watch(model, every_n_steps=1, history_size=size, detectors=[]) as watcher:
        for _ in range(4):
            train(watcher, model, 60)
            assert len(watcher.history) <= size
    steps = measured(watcher)
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == 239
    assert max(np.diff(steps)) <= 4 * 240 / size


def test_a_warning_comes_once_and_names_the_finding() -> None:
    model = network()
    with (
        watch(model, detectors=[finds(1, 2, 3)]) as watcher,
        pytest.warns(GradientWarning, match="mine at 1") as caught,
    ):
        train(watcher, model, 6)
    assert len(caught) == 1
    assert not watcher.should_stop


def test_stop_warns_and_asks_to_stop() -> None:
    model = network()
    with watch(model, detectors=[finds(1)], on_finding="stop") as watcher:
        train(watcher, model, 1)
        assert not watcher.should_stop
        with pytest.warns(GradientWarning):
            train(watcher, model, 1)
        assert watcher.should_stop


def test_raise_carries_the_finding_and_the_snapshot_is_kept() -> None:
    model = network()
    with (
        pytest.raises(GradientError, match="mine at 1") as caught,
        watch(model, detectors=[finds(1)], on_finding="raise") as watcher,
    ):
        train(watcher, model, 6)
    assert caught.value.finding is watcher.findings[0]
    assert measured(watcher) == [0, 1]
    assert hooks_on(model) == 0


def test_a_function_is_called_with_each_finding_that_opens() -> None:
    model, calls = network(), []
    with watch(model, detectors=[finds(1, 2), finds(4)], on_finding=calls.append) as watcher:
        train(watcher, model, 6)
    assert calls == [finds(1)(Snapshot(1, ())), finds(4)(Snapshot(4, ()))]


def test_a_detector_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="detectors: 'vanishing' is a str; expected"):
        watch(network(), detectors=["vanishing"])


class Lopsided:
    """The first layer's gradient is ten times any other's."""

    patience = 2

    def __call__(self, snapshot: Snapshot) -> Finding | None:
        first, *others = snapshot.grad_norm[~np.isnan(snapshot.grad_norm)]
        if first > 10 * max(others):
            message = f"lopsided: {first:.1e} in the first layer. Try a normalization layer."
            return Finding("lopsided", (snapshot.layers[0],), snapshot.step, first, 10 * max(others), message)
        return None


def test_a_detector_of_your_own_takes_a_few_lines() -> None:
    assert len(inspect.getsource(Lopsided).splitlines()) < 15
    model = network()
    nn.init.constant_(model[0].weight, 1e-3)
    with watch(model, detectors=[Lopsided()]) as watcher, warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        train(watcher, model, 4)
    assert all(finding.kind == "lopsided" for finding in watcher.findings)
    assert Lopsided()(Snapshot(0, ("a", "b"), grad_norm=[99.0, 1.0])).layers == ("a",)


def test_a_resumed_watcher_goes_on_counting_and_keeps_its_findings() -> None:
    model = network()
    with watch(model, detectors=[finds(18, 19)], on_finding=lambda finding: None) as first:
        train(first, model, 20)
    second = watch(model, detectors=[finds(20)])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    with second:
        train(second, model, 31)
    assert measured(second) == [*range(20), 50]
    assert second.findings == first.findings
