"""The sealed programs are described as they are to be measured; none of them is run here."""

from __future__ import annotations

from typing import get_args

import pytest
from sealed.base import Program
from sealed.check import everything
from sealed.expected import EXPECTED
from sealed.judging import Result, Run
from sealed.measure import accused, fault_row, runs_rows, selected, sum_of_faults
from sealed.places import Place, place_of

from gradwatch.records import Cause

NOT_YET = {"shapes broadcast", "unbounded activation"}  # names of causes agreed on before there were rules for them
DIVISION = Place("div", "Shop.prices", "shop.py", (60, 70))


def test_causes_are_agreed_for_each_faulty_program_and_for_no_other() -> None:
    assert {*EXPECTED} == {program.name for program in everything() if program.fault}
    assert {cause for causes in EXPECTED.values() for cause in causes} <= {*get_args(Cause)} - {"not known"} | NOT_YET


def test_each_place_is_a_function_of_its_program() -> None:
    places = [place for place in map(place_of, everything()) if place]
    assert len(places) == sum(bool(program.place) for program in everything())
    assert all(0 < place.lines[0] < place.lines[1] for place in places)


@pytest.mark.parametrize(
    "text",
    [
        "NaN first comes from div in Shop.prices (shop.py:67).",
        "DivBackward0 returned nan values; it was made at shop.py:60",
        'NaN of aten::div at File "/a/shop.py", line 69, in prices',
        "the division in prices() is 0 / 0",
        "NaN from torch.div_ in `prices`, line 3",
        "`over / rest` on line 61 of /a/shop.py",
    ],
)
def test_a_text_names_a_place_with_its_operation_and_its_function(text: str) -> None:
    assert DIVISION.is_named([text])


@pytest.mark.parametrize(
    "text",
    [
        "look for a division, log, sqrt or exp in the layers named",
        "a total is divided in Shop.all (shop.py:71)",
        "the log in Shop.prices",
        "dividend in Shop.prices",
        "it is the first in forward order: layer net/0 of 60/70",
    ],
)
def test_a_text_that_names_one_of_them_or_others_does_not(text: str) -> None:
    assert not DIVISION.is_named([text])
    assert not Place("div", "Shop.forward", "shop.py", (60, 70)).has_function(text)


def test_both_must_stand_in_one_text() -> None:
    assert not DIVISION.is_named(["a division by zero", "NaN in Shop.prices"])


def test_the_figures_count_runs_and_leave_out_what_no_cause_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPECTED, "one", ("unscaled input",))
    monkeypatch.setitem(EXPECTED, "two", ())
    fits = Program("one", "vision", "", None, "a fault")  # type: ignore[arg-type]
    none = Program("two", "tables", "", None, "a fault", place="div in A.b")  # type: ignore[arg-type]
    said = Run(0, 0.1, ("spike",), ("dead ReLU", "unscaled input"), ("spike",))
    silent = Run(1, 0.1)
    results = [Result(fits, (said, silent), (silent,)), Result(none, (said, said), (silent,))]
    row, other = map(fault_row, results)
    assert (row["found"], row["first"], row["three"], row["place"]) == (1, 0, 1, "-")
    assert (other["found"], other["first"], other["three"], other["place"]) == (2, "-", "-", 0)
    figures = {str(one["figure"]): one for one in sum_of_faults(results)}
    assert str(figures["found: a finding, a cause or a warning"]["hits"]).startswith("3 (75.0%")
    assert str(figures["right cause among the first three"]["hits"]).startswith("1 (50.0%")
    assert figures["operation and function named"]["programs"] == 1


def test_a_run_that_only_crashed_accuses_nobody() -> None:
    crashed = Run(0, error="RuntimeError: no")
    assert [row["accused"] for row in accused([("a", [crashed])])] == ["0 (0.0%, 0.0%-79.3%)"]
    fault = Program("a", "tables", "", None, "a fault")  # type: ignore[arg-type]
    rows = runs_rows(Result(fault, (crashed,), (crashed,)))
    assert [(row["kind"], row["found"]) for row in rows] == [("faulty", False), ("twin", False)]


def test_a_program_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no 'x'"):
        selected(["x"], ("vision",))
