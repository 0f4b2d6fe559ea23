"""The schedule of a plain loop under watch(): the measured steps, with hooks in these alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from watched_loops import X, finds, hooks_on, measured, network, train

from gradwatch import Finding, Snapshot, Watcher, watch
from gradwatch.pipeline.schedule import Schedule
from gradwatch.snapshot import Origin


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


class Flickering:
    """Finds trouble at each measured step, in other layers than at the one before, so that none ever lasts."""

    patience = 2

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, snapshot: Snapshot) -> Finding:
        self.seen += 1
        return Finding("flickering", ("0" if self.seen % 2 else "2",), snapshot.step, 2.0, 1.0, "it flickers")


def extra(steps: list[int]) -> list[int]:
    return [step for step in steps if step >= 20 and step % 50]


def test_trouble_that_comes_and_goes_costs_few_extra_steps() -> None:
    model = network()
    with watch(model, detectors=[Flickering()]) as watcher:
        train(watcher, model, 1000)
    steps = extra(measured(watcher))
    assert steps[:20] == [*range(20, 30), *range(51, 61)]
    assert steps[20:] == [101, 201, 301, 401, 501, 601, 701, 801, 901]  # without a limit 180 more


def test_new_trouble_is_looked_at_at_once_beside_one_that_comes_and_goes() -> None:
    class New:
        patience = 10

        def __call__(self, snapshot: Snapshot) -> Finding | None:
            return Finding("new", ("0",), snapshot.step, 2.0, 1.0, "new") if snapshot.step >= 450 else None

    model, opened = network(), []
    with watch(model, detectors=[Flickering(), New()], on_finding=opened.append) as watcher:
        train(watcher, model, 470)
        assert [(finding.kind, finding.step) for finding in opened] == [("new", 450)]
    assert extra(measured(watcher))[-10:] == list(range(451, 461))


def worn_out(step: int = 200) -> Schedule:
    """Return a schedule that has no extra step left for the detector in place 0, and is at a regular step."""
    schedule = Schedule(50, 0)
    for place in range(step + 1):
        if schedule.is_due(place):
            schedule.record(place, [0])
    return schedule


def test_the_step_after_the_origin_of_nan_is_always_measured() -> None:
    schedule = worn_out(250)
    assert not schedule.is_due(251)
    model = network()
    with watch(model, every_n_steps=50, dense_steps=0, detectors=[Flickering()]) as watcher:
        watcher.intake.schedule.load_state_dict(schedule.state_dict())
        train(watcher, model, 7)
        watcher.intake.note_origin(Origin(7, "operation", "log"))
        train(watcher, model, 3)
    assert measured(watcher) == [0, 8]


def test_a_schedule_goes_on_from_its_state_and_from_an_older_one() -> None:
    schedule, again = worn_out(200), Schedule(50, 0)
    again.load_state_dict(schedule.state_dict())
    for step in range(201, 400):
        assert again.is_due(step) == schedule.is_due(step)
        for one in (schedule, again):
            if one.is_due(step):
                one.record(step, [0])
    again.load_state_dict({"extra": 3, "look_again": True})
    assert again.is_due(401)
    again.record(401, [0])
    assert again.is_due(402)


def test_hooks_left_for_a_step_that_is_not_due_any_more_are_gone_when_it_ends() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watcher = Watcher(model, every_n_steps=50, dense_steps=2)

    def step() -> int:
        watcher.begin()
        model(X).square().mean().backward()
        watcher.read(optimizer)
        watcher.end()
        return hooks_on(model)

    assert step() > 0  # for step 1
    watcher.intake.schedule.dense_steps = 0  # as a checkpoint may, that is loaded in between
    assert step() == 0
    watcher.close()
