"""JUnit's XML: it parses whatever the names are, and its counts are those of its cases."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from outcomes import ALL, crashed, half_known, healthy, sick, untrained

from gradwatch.commands.junit import as_junit
from gradwatch.commands.problems import Outcome


def suite_of(made: Outcome) -> ElementTree.Element:
    (suite,) = ElementTree.fromstring(as_junit(made).encode())
    return suite


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_the_counts_are_those_of_the_cases(make: Callable[[], Outcome]) -> None:
    suite = suite_of(make())
    assert suite.tag == "testsuite"
    assert suite.get("tests") == str(len(suite.findall("testcase")))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suite.get(name) == str(len(suite.findall(f"testcase/{tag}")))
    assert float(suite.get("time", "-1")) >= 0
    assert all(case.get("classname") and case.get("name") for case in suite)


def test_a_healthy_training_is_one_passed_test() -> None:
    (case,) = suite_of(healthy())
    assert [part.tag for part in case] == ["system-out"]


def test_a_problem_is_a_failure_with_message_layers_and_advice() -> None:
    training, cause, dead, own = suite_of(sick())
    assert (training.get("name"), cause.get("name"), dead.get("name")) == (
        "training",
        "GW113 outlier batch",
        "GW004 dead",
    )
    assert own.get("name") == "slow_first_layer"
    failure = cause.find("failure")
    assert failure is not None
    assert failure.get("message") == "The loss jumped."
    assert "1. look at the batch\n2. clip" in (failure.text or "")
    # What XML can't hold is replaced; what it has to escape comes back.
    assert "block<0>.\N{REPLACEMENT CHARACTER}&\"'\N{REPLACEMENT CHARACTER}.umlaut-ä" in (failure.text or "")


def test_what_the_baseline_has_is_skipped() -> None:
    assert [[part.tag for part in case] for case in suite_of(half_known())][1:] == [
        ["failure"],
        ["skipped"],
        ["skipped"],
    ]


def test_a_crash_is_an_error_with_its_lines() -> None:
    error = suite_of(crashed()).find("testcase/error")
    assert error is not None
    assert error.get("type") == "RuntimeError"
    assert "outcomes.py" in (error.text or "")
    assert "no optimizer" in (suite_of(untrained()).find("testcase/error").get("message") or "")  # type: ignore[union-attr]
