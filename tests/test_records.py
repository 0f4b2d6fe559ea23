"""Snapshot, Finding, Diagnosis: their contents, to_dict and from_dict."""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest

from gradwatch import Diagnosis, Finding, GradientError, Snapshot
from gradwatch.records import ARRAYS, COLUMNS

FOUND = Finding("vanishing", ("a",), step=3, value=1e-7, threshold=1e-3, message="it vanishes")


def test_a_column_that_is_not_given_is_nan_and_missing() -> None:
    snapshot = Snapshot(0, ("a", "b"), gain=[1.0, math.nan])
    assert set(snapshot.missing) == set(COLUMNS)
    assert snapshot.missing["gain"] == ("b",)
    assert snapshot.missing["grad_norm"] == ("a", "b")
    assert all(getattr(snapshot, name).dtype == np.float64 for name in COLUMNS)
    assert Snapshot(0, ("a",), **{name: [0.0] for name in COLUMNS}).missing == {}


def test_a_column_without_values_takes_no_memory_and_cannot_be_written() -> None:
    layers = tuple(map(str, range(10_000)))
    snapshot = Snapshot(0, layers, gain=[math.nan] * len(layers), grad_norm=[1.0] * len(layers))
    assert snapshot.nbytes == 8 * len(layers)
    with pytest.raises(ValueError, match="read-only"):
        snapshot.gain[0] = 1.0


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], 1.0])
def test_a_column_of_the_wrong_length_is_refused_by_name(values: object) -> None:
    with pytest.raises(ValueError, match=r"column gain has shape .*; expected one value for each of 2 layers"):
        Snapshot(0, ("a", "b"), gain=values)


@pytest.mark.parametrize("name", ["param_grad_norm", "trace_loss", "trace_total_norm"])
def test_the_other_arrays_are_made_of_lists_too_and_have_a_value_for_each_entry(name: str) -> None:
    names = {"params": ("a.weight", "a.bias"), "trace_step": range(2)}
    assert getattr(Snapshot(0, ("a",), **names, **{name: [1, 2]}), name).tolist() == [1.0, 2.0]
    assert np.isnan(getattr(Snapshot(0, ("a",), **names), name)).tolist() == [True, True]
    with pytest.raises(ValueError, match=rf"column {name} has shape \(3,\); expected one value for each of 2"):
        Snapshot(0, ("a",), **names, **{name: [1, 2, 3]})


def test_a_missing_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kinds has 1 names; expected one for each of 2 layers"):
        Snapshot(0, ("a", "b"), ("Linear",))


def test_a_snapshot_comes_back_from_plain_numbers_bit_for_bit() -> None:
    third = 1 / 3
    columns = {"gain": [third, math.inf], "trace_step": [1, 2], "trace_loss": [third, math.nan], "loss": np.float32(2)}
    plain = Snapshot(2, ("a", "b"), params=("a.w",), calls={"a": [third]}, skipped=True, **columns).to_dict()
    back = Snapshot.from_dict(json.loads(json.dumps(plain)))
    assert (back.gain.tolist(), back.calls["a"].tolist(), back.loss, back.skipped) == (
        [third, math.inf],
        [third],
        2,
        True,
    )
    assert (back.trace_loss[0], back.params, back.left_out, back.to_dict().keys()) == (
        third,
        ("a.w",),
        (),
        plain.keys(),
    )
    assert all(getattr(back, name).dtype == np.float64 for name in ARRAYS)


def test_a_finding_comes_back_from_plain_numbers() -> None:
    odd = dataclasses.replace(FOUND, step=np.int64(3), value=np.float64(1e-7), closed_step=np.int64(9))
    plain = json.loads(json.dumps(odd.to_dict()))
    assert Finding.from_dict(plain) == dataclasses.replace(FOUND, closed_step=9)


def test_a_snapshot_cannot_be_changed_and_is_known_by_identity() -> None:
    snapshot = Snapshot(0, ("a",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.step = 1
    assert len({snapshot, Snapshot(0, ("a",))}) == 2


def test_the_ratio_has_no_value_where_there_are_no_usable_weights() -> None:
    snapshot = Snapshot(0, tuple("abcd"), grad_norm=[1, 1, 1, math.inf], weight_norm=[2, 0, math.nan, math.inf])
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(snapshot.grad_to_weight_ratio, [0.5, math.nan, math.nan, math.nan])


def test_the_clip_coefficient_is_after_over_before() -> None:
    assert Snapshot(0, (), total_norm=4.0, total_norm_after=1.0).clip_coefficient == 0.25
    assert Snapshot(0, (), total_norm=0.0, total_norm_after=0.0).clip_coefficient == 1.0
    assert math.isnan(Snapshot(0, ()).clip_coefficient)  # not measured


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_they_travel_between_processes(clone: object) -> None:
    snapshot = clone(Snapshot(7, ("a",), gain=[0.5], calls={"a": np.ones(2)}))
    assert (snapshot.step, snapshot.layers, snapshot.gain.tolist()) == (7, ("a",), [0.5])
    assert clone(FOUND) == FOUND
    error = clone(GradientError(FOUND))
    assert (error.finding, str(error)) == (FOUND, "it vanishes")


def test_a_finding_is_open_until_it_has_a_closing_step() -> None:
    assert FOUND.is_open
    assert not dataclasses.replace(FOUND, closed_step=0).is_open


def test_a_diagnosis_reads_as_a_sentence() -> None:
    evidence = "The Linear multiplies it by 0.1."
    diagnosis = Diagnosis("initialization too small", evidence, 0.9, (FOUND,), ("He", "BatchNorm"))
    text = "initialization too small. The Linear multiplies it by 0.1. Try: He; BatchNorm."
    assert str(diagnosis) == text
