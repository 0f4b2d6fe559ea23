"""The comparison of two runs: what is apart, beyond which noise, and what is not compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradwatch.records import Snapshot
from gradwatch.reporting.comparison import Comparison, compare, settings_apart
from gradwatch.reporting.html.compare import comparison_html
from gradwatch.reporting.reading import Record
from tests.reporting.shown_runs import INF, NAN, deep_run, vanishing_run


def run_of(norms: list[list[float]], layers: tuple[str, ...] = ("a", "b"), **more: float) -> Record:
    return Record([Snapshot(10 * i, layers, grad_norm=row, **more) for i, row in enumerate(norms)], [])


def compared(first: list[list[float]], second: list[list[float]], **more: float) -> Comparison:
    return compare(run_of(first), run_of(second), **more)


def test_a_run_is_equal_to_itself() -> None:
    found = compare(Record(deep_run(4, 2), []), Record(deep_run(4, 2), []))
    assert found.sentence == "The runs are equal in all 4 steps: each value that both records hold is the same."
    assert (found.differs, found.parts, found.gaps, found.farthest) == (None, None, (), ())


def test_the_first_step_layer_and_column_are_named() -> None:
    even, other = [[1.0, 2.0]] * 6, [[1.0, 2.0]] * 2 + [[1.0, 2.01]] + [[1.0, 9.0]] * 3
    found = compared(even, other)
    assert found.differs is not None
    assert (found.differs.step, found.differs.layer, found.differs.column) == (20, "b", "grad_norm")
    assert found.parts is not None
    assert (found.parts.step, found.parts.layer, found.parts.first, found.parts.second) == (30, "b", 2.0, 9.0)
    assert "at step 30: the gradient of `b` is 2.00 in A and 9.00 in B, 4.50x apart" in found.sentence


def test_a_gradient_begins_at_the_last_layer_and_an_output_at_the_first() -> None:
    base = {"grad_norm": [1.0, 1.0], "output_rms": [1.0, 1.0]}
    runs = [Record([Snapshot(0, ("a", "b"), **{**base, name: [9.0, 9.0]})], []) for name in base]
    untouched = Record([Snapshot(0, ("a", "b"), **base)], [])
    places = [compare(untouched, run).parts for run in runs]
    assert [place and place.layer for place in places] == ["b", "a"]


def test_of_one_step_the_reason_is_named_before_its_consequence() -> None:
    first = Record([Snapshot(0, ("a",), weight_norm=[1.0], grad_norm=[1.0], loss=1.0)], [])
    second = Record([Snapshot(0, ("a",), weight_norm=[9.0], grad_norm=[9.0], loss=9.0)], [])
    found = compare(first, second).parts
    assert found is not None
    assert found.column == "weight_norm"


@pytest.mark.parametrize(
    ("second", "is_apart"),
    [
        ([[1.0, 1.0], [1.0, 50.0], [1.0, 1.0], [1.0, 1.0]], False),  # for one step
        ([[1.0, 1.0], [1.0, 50.0], [1.0, 0.02], [1.0, 50.0]], False),  # now above, now below
        ([[1.0, 2.5]] * 4, False),  # less than 3x
        ([[1.0, 3.5]] * 4, True),
        ([[1.0, 0.0]] * 4, True),
        ([[1.0, NAN]] * 4, False),  # has no value
        ([[1.0, 1.0], [1.0, INF], [1.0, 1.0], [1.0, 1.0]], True),  # NaN for one step is no noise
    ],
)
def test_what_counts_as_apart(second: list[list[float]], is_apart: bool) -> None:
    assert (compared([[1.0, 1.0]] * 4, second).parts is not None) is is_apart


def test_a_value_that_jumps_by_itself_has_to_be_farther_away() -> None:
    noisy = [[1.0], [30.0], [1.0], [30.0], [1.0], [30.0]]
    far = [[5 * row[0]] for row in noisy]
    assert compare(run_of(noisy, ("a",)), run_of(far, ("a",))).parts is None
    assert compare(run_of([[1.0]] * 6, ("a",)), run_of([[5.0]] * 6, ("a",))).parts is not None


def test_other_seeds_are_not_apart() -> None:
    for seed in range(1, 4):
        other = deep_run(40, 4, seed=seed)
        usual = [10 ** np.random.default_rng(s).normal(-1, 1, 28) for s in (0, seed)]
        same_size = [
            replace(s, grad_norm=s.grad_norm * usual[0] / usual[1], grad_output_norm=None, update_norm=None,
                    update_to_weight=None)
            for s in other
        ]  # fmt: skip
        found = compare(Record(deep_run(40, 4), []), Record(same_size, []))
        assert found.columns["grad_norm"] is None


def test_a_tolerance_of_ones_own() -> None:
    assert compared([[1.0, 1.0]] * 4, [[1.0, 1.2]] * 4, tolerance=0.1).parts is not None
    assert "1.1x the other" in compared([[1.0, 1.0]] * 4, [[1.0, 1.2]] * 4, tolerance=0.1).rule


def test_other_layers_and_steps_are_told_and_left_out() -> None:
    first, second = run_of([[1.0, 2.0]] * 3), run_of([[1.0, 2.0]] * 5, ("b", "c"))
    second.snapshots.pop(0)
    found = compare(first, second)
    assert (found.steps, found.layers) == ((10, 20), ("b",))
    assert found.gaps == (
        "1 measured step of A alone, step 0.",
        "1 layer of A alone: `a`.",
        "2 measured steps of B alone, from 30 to 40.",
        "1 layer of B alone: `c`.",
    )


@pytest.mark.parametrize("second", [Record([], []), run_of([[1.0]], ("z",)), Record([Snapshot(5, ("a",))], [])])
def test_runs_with_nothing_in_common_cannot_be_compared(second: Record) -> None:
    first = run_of([[1.0, 2.0]])
    found = compare(first, second)
    assert found.sentence.startswith("The runs cannot be compared")
    assert "cannot be compared" in comparison_html(found, (first, [], "A"), (second, [], "B"))


def test_settings_that_only_one_run_knows_are_told() -> None:
    assert settings_apart({"lr": "1"}, {"lr": "1", "clip": "2"}) == {"clip": ("", "2")}


def test_the_page_escapes_what_comes_from_a_run() -> None:
    runs = [Record(vanishing_run(), [], settings={"<u>": name}) for name in ("<q>", "<i>")]
    found = compare(*runs)
    html = comparison_html(found, (runs[0], [], "<s>one</s>"), (runs[1], [], "<s>two</s>"))
    assert not any(tag in html for tag in ("<q>", "<i>", "<u>", "<s>"))
    assert "&lt;q&gt;" in html
