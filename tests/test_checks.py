"""Checks of arguments: the values that pass, and the messages for the others."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.checks import (
    require_number,
    require_one_of,
    require_patterns,
    require_positive,
    require_share,
    require_whole,
)
from gradwatch.detectors import Exploding
from gradwatch.transforms import PercentileClip

no_numbers = st.one_of(st.booleans(), st.none(), st.text(), st.just(math.nan), st.complex_numbers())
bounds = st.floats(allow_nan=False, allow_infinity=False)


def passes(check, **settings: object) -> bool:
    try:
        check("Owner", **settings)
    except ValueError:
        return False
    return True


@given(st.integers(), st.integers(-5, 5))
def test_whole_numbers_from_the_least_on(value: int, least: int) -> None:
    assert passes(require_whole, least=least, n=value) == (value >= least)


@given(st.floats(allow_infinity=False, allow_nan=False))
def test_no_float_is_a_whole_number(value: float) -> None:
    assert not passes(require_whole, n=value)


@given(st.one_of(st.floats(allow_nan=False), st.integers()), bounds, bounds)
def test_numbers_between_bounds(value: float, low: float, high: float) -> None:
    is_finite = -math.inf < value < math.inf
    assert passes(require_number, least=low, most=high, x=value) == (is_finite and low <= value <= high)
    assert passes(require_number, above=low, below=high, x=value) == (is_finite and low < value < high)
    assert passes(require_number, least=low, finite=False, x=value) == (low <= value)
    assert passes(require_positive, x=value) == (value > 0)
    assert passes(require_share, x=value) == (0 < value <= 1)


@given(no_numbers)
def test_what_is_no_number_is_refused(value: object) -> None:
    for check in (require_number, require_positive, require_share, require_whole):
        assert not passes(check, x=value)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), np.float64(3), Fraction(3), 10**400])
def test_numbers_of_other_libraries_and_huge_ones_pass(value: float) -> None:
    assert passes(require_positive, x=value)
    assert passes(require_number, above=0, x=value)
    assert passes(require_whole, x=value) == isinstance(value, (int, np.integer))


@pytest.mark.parametrize("value", [np.bool_(True), True, np.array([1])])
def test_truths_and_arrays_are_no_numbers(value: object) -> None:
    assert not passes(require_whole, x=value)
    assert not passes(require_positive, x=value)


@pytest.mark.parametrize(
    ("check", "settings", "message"),
    [
        (require_number, {"above": 0, "x": -1}, "Owner: x is -1; expected a finite number above 0"),
        (
            require_number,
            {"least": 0, "below": 1, "x": 1},
            "Owner: x is 1; expected a finite number of at least 0 and below 1",
        ),
        (require_number, {"x": "1"}, "Owner: x is '1'; expected a finite number"),
        (require_positive, {"good": 1, "x": 0, "y": 0}, "Owner: x is 0; expected a number above 0"),
        (require_share, {"x": 80}, "Owner: x is 80; expected a number above 0 and at most 1"),
        (require_whole, {"least": 2, "x": 1}, "Owner: x is 1; expected a whole number of at least 2"),
        (require_patterns, {"x": "a.*"}, "Owner: x is 'a.*'; expected a list of patterns, such as ['a.*']"),
        (require_one_of, {"allowed": ("a", "b", "c"), "x": "d"}, "Owner: x is 'd'; expected 'a', 'b' or 'c'"),
    ],
)
def test_the_message_has_owner_name_value_and_what_is_expected(check, settings: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check("Owner", **settings)
    assert str(caught.value) == message


def test_the_owner_is_the_class_or_nothing() -> None:
    with pytest.raises(ValueError, match=r"^Exploding: growth is 0; expected a number above 0$"):
        Exploding(growth=0)
    with pytest.raises(ValueError, match=r"^steps is 0; expected a whole number of at least 1$"):
        require_whole(None, steps=0)
    assert PercentileClip(history=np.int64(3)).history == 3
    assert passes(require_patterns, x=["a.*"])
    assert passes(require_one_of, allowed=("a", "b"), x="a")
