"""The schedule of a plain loop under watch(): the measured steps, with hooks in these alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from watched_loops import finds, hooks_on, measured, network, train

from gradwatch import Finding, Snapshot, watch


def test_the_first_twenty_steps_are_measured_and_then_every_fiftieth() -> None:
    model = network()
    with watch(model) as watcher:
        snapshots = train(watcher, model, 160)
    assert measured(watcher) == [*range(20), 50, 100, 150]
    assert [snapshot.step for snapshot in snapshots if snapshot] == measured(watcher)
    assert watcher.steps == 160


@pytest.mark.parametrize(
    ("every", "dense", "expected"), [(1, 0, [0, 1, 2, 3, 4, 5, 6]), (3, 0, [0, 3, 6]), (5, 2, [0, 1, 5]), (9, 0, [0])]
)
def test_the_schedule_is_what_was_asked_for(every: int, dense: int, expected: list[int]) -> None:
    model = network()
    with watch(model, every_n_steps=every, dense_steps=dense) as watcher:
        train(watcher, model, 7)
    assert measured(watcher) == expected


def test_hooks_are_there_for_a_measured_step_only() -> None:
    model, seen = network(), []
    with watch(model, every_n_steps=4, dense_steps=2) as watcher:
        for _ in range(10):
            seen.append((hooks_on(model) > 0, watcher.is_measuring))
            train(watcher, model, 1)
    assert seen == [(step in (0, 1, 4, 8),) * 2 for step in range(10)]
    assert hooks_on(model) == 0


@pytest.mark.parametrize("detector", [finds(50, 51, 52), finds(*range(50, 99))], ids=["passing", "lasting"])
def test_what_looks_odd_is_looked_at_again_for_a_while(detector: Callable) -> None:
    class Patient:
        patience = 1000

        def __call__(self, snapshot: Snapshot) -> Finding | None:
            return detector(snapshot)

    model = network()
    with watch(model, detectors=[Patient()]) as watcher:
        train(watcher, model, 120)
    again = [step for step in measured(watcher) if 50 <= step < 100]
    assert again == ([50, 51, 52, 53] if detector(Snapshot(60, ())) is None else list(range(50, 61)))
    assert measured(watcher)[-1] == 100


def test_a_finding_that_opens_makes_the_next_step_measured() -> None:
    model = network()
    with watch(model, detectors=[finds(50)], on_finding=lambda finding: None) as watcher:
        train(watcher, model, 101)
    assert measured(watcher)[20:] == [50, 51, 100]
