"""What needs harm is kept back, dropped, opened late, at the end, or closed, as the loss decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest

from gradwatch.pipeline.ledger import Ledger
from gradwatch.records import Finding, Snapshot

LAYERS = ("a", "b")


class Dull:
    """Finds the same in the steps that it is given."""

    patience = 2
    harm_after: ClassVar[int] = 20

    def __init__(self, steps: range, value: float = 2.0) -> None:
        self.steps, self.value = steps, value

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        if snapshot.step in self.steps:
            yield Finding("dull", ("a",), snapshot.step, self.value, 1.0, f"step {snapshot.step}")


class Early(Dull):
    only_early: ClassVar[bool] = True


def losses(course: str, count: int) -> np.ndarray:
    steps = np.arange(count)
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=count)
    rows = {
        "falls": 2.3 * 0.95**steps,
        "stays": np.full(count, 2.3),
        "falls a little": 2.3 * (0.7 + 0.3 * 0.9**steps),
        "rises": np.where(steps < 4, 2.3, 23.0),
        "falls, then rises": np.where(steps < 60, 2.3 * 0.9**steps, 9.0),
        "is a reward": -np.linspace(1, 2, count),
    }
    return rows[course] * noise


def follow(detector: Dull, course: str, count: int = 60) -> tuple[Ledger, list[int]]:
    """Return the ledger and the steps at which a finding opened."""
    ledger, opened = Ledger([detector]), []
    for step, loss in enumerate(losses(course, count)):
        found = ledger.update(Snapshot(step, LAYERS, loss=loss, trace_step=[step], trace_loss=[loss]))
        opened += [step] * len(found)
    return ledger, opened


@pytest.mark.parametrize(
    ("course", "opened"),
    [("falls", []), ("stays", [20]), ("falls a little", [20]), ("rises", [6]), ("is a reward", [])],
)
def test_the_loss_decides(course: str, opened: list[int]) -> None:
    ledger, at = follow(Dull(range(60)), course)
    assert at == opened
    assert [finding.step for finding in ledger.findings] == [0] * len(opened)


def test_it_is_said_at_once_where_the_loss_is_nan() -> None:
    ledger = Ledger([Dull(range(9))])
    for step, loss in enumerate([2.3, 2.2, np.inf]):
        opened = ledger.update(Snapshot(step, LAYERS, loss=loss, trace_step=[step], trace_loss=[loss]))
    assert [(finding.step, finding.message) for finding in opened] == [(0, "step 1")]


def test_what_is_kept_back_is_judged_at_the_end() -> None:
    ledger, opened = follow(Dull(range(60)), "stays", 10)
    assert opened == []
    assert [finding.step for finding in ledger.check_losses(Snapshot(10, ()))] == [0]
    assert ledger.check_losses(Snapshot(10, ())) == []


def test_it_closes_once_the_run_learns_and_comes_back_when_that_is_lost() -> None:
    ledger, _ = follow(Dull(range(200)), "falls, then rises", 120)
    spans = [(finding.step, finding.closed_step) for finding in ledger.findings]
    assert all(step >= 60 for step, closed in spans if closed is None)
    ledger, opened = follow(Dull(range(200)), "falls", 200)
    assert not any(finding.is_open for finding in ledger.findings), (opened, ledger.findings)


def test_an_explosion_of_the_first_steps_that_passes_is_no_finding_where_the_loss_is_no_worse() -> None:
    assert follow(Early(range(4)), "falls a little")[1] == []
    assert follow(Early(range(4), 1e6), "stays")[1] == []
    ledger, opened = follow(Early(range(3)), "rises")
    assert opened == [4] or opened == [5]
    assert [finding.step for finding in ledger.findings] == [0]


def test_a_mild_explosion_is_let_off_and_a_strong_one_is_not_even_where_the_loss_falls() -> None:
    assert follow(Early(range(60), 1.04), "falls")[1] == []
    assert follow(Early(range(60), 100.0), "falls")[1] == [20]
    assert follow(Early(range(30, 60), 100.0), "falls")[1] == [31]  # not of the first steps


def test_a_checkpoint_keeps_what_is_kept_back() -> None:
    whole, opened = follow(Dull(range(60)), "stays", 40)
    first, second = Ledger([Dull(range(60))]), Ledger([Dull(range(60))])
    for step, loss in enumerate(losses("stays", 40)):
        if step == 10:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        (first if step < 10 else second).update(Snapshot(step, LAYERS, loss=loss, trace_step=[step], trace_loss=[loss]))
    assert opened == [20]
    assert second.findings == whole.findings


def test_a_finding_keeps_its_words_and_tells_the_latest_and_the_worst() -> None:
    def found(snapshot: Snapshot) -> Finding:
        value = [2.0, 5.0, 3.0][snapshot.step]
        return Finding("mine", ("a", "b")[: snapshot.step + 1], snapshot.step, value, 1.0, f"it is {value}")

    ledger = Ledger([found])
    for step in range(3):
        ledger.update(Snapshot(step, LAYERS))
    (finding,) = ledger.findings
    assert (finding.step, finding.layers, finding.value, finding.message) == (0, ("a",), 2.0, "it is 2.0")
    assert (finding.worst, finding.latest) == ((1, 5.0), (2, 3.0))
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding


@pytest.mark.parametrize(("value", "opened"), [(3.0, []), (100.0, [1])])
def test_what_grows_a_little_over_the_calls_of_a_cell_is_let_off_where_the_loss_falls(
    value: float, opened: list[int]
) -> None:
    ledger, at = Ledger([Early(range(60), value)]), []
    for step, loss in enumerate(losses("falls", 60)):
        calls = {"a": np.ones(9)}
        at += ledger.update(Snapshot(step, LAYERS, calls=calls, trace_step=[step], trace_loss=[loss])) and [step]
    assert at == opened
