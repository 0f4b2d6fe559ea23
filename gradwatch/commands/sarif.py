"""The outcome of a check as SARIF 2.1.0, which code scanning reads.

References:
    OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0,
    https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html.
    GitHub, SARIF support for code scanning, https://docs.github.com/en/code-security/code-scanning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradwatch.commands.explained_causes import CAUSES
from gradwatch.commands.explained_findings import FINDINGS
from gradwatch.commands.explanation import is_cause, things_to_do, way_to_allow
from gradwatch.commands.formats import strict
from gradwatch.commands.problems import (
    WRONG_USE,
    Location,
    Outcome,
    Problem,
    location_of_class,
    location_of_error,
    repository,
)
from gradwatch.identifiers import IDENTIFIERS

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ERRORS = ("nonfinite", "out-of-sync")  # the findings whose severity is an error
_ROOT = "%SRCROOT%"  # the name that GitHub gives to the root of the repository
_LINK = re.compile(r"\[([^\]]+)\]\(GW\d+\.md\)")  # pages of the documentation link to each other
_EXITS = {0: "healthy", 1: "something was found, or the training crashed", 2: "a part of the training is missing"}


def as_sarif(outcome: Outcome) -> str:
    """Return a SARIF log with one run: all rules, a result for each problem, and a notification for a crash."""
    run = {
        "tool": {"driver": _driver()},
        "automationDetails": {"id": f"gradwatch/{outcome.model}/"},
        "originalUriBaseIds": {_ROOT: {"uri": repository().as_uri() + "/"}},
        "invocations": [_invocation(outcome)],
        "results": [_result(problem, outcome) for problem in outcome.problems],
        "columnKind": "unicodeCodePoints",
    }
    return json.dumps(strict({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}), indent=2, allow_nan=False)


def _driver() -> dict[str, Any]:
    version, address = _about_gradwatch()
    about = {"name": "gradwatch", "version": version, "informationUri": address}
    return {**{name: value for name, value in about.items() if value}, "rules": [_rule(each) for each in IDENTIFIERS]}


def _about_gradwatch() -> tuple[str, str]:
    """Return the version and the project's address; empty where they are not known."""
    try:
        about = metadata("gradwatch")
    except PackageNotFoundError:  # a checkout that is not installed
        return "", ""
    addresses = [entry.partition(", ")[2] for entry in about.get_all("Project-URL") or ()]
    return about["Version"], next(iter(addresses), "")


def _rule(identifier: str) -> dict[str, Any]:
    name, told = IDENTIFIERS[identifier], (FINDINGS | CAUSES)[identifier]  # type: ignore[operator]
    text = _LINK.sub(r"\1", told.text)
    level = "error" if name in _ERRORS else "warning"
    return {
        "id": identifier,
        "name": "".join(part.capitalize() for part in re.split(r"[\s-]", name)),
        "shortDescription": {"text": f"{told.short}."},
        "fullDescription": {"text": text.replace("`", "").replace("*", "")},
        "help": {
            "text": "\n".join(_help(identifier, text, is_plain=True)),
            "markdown": "\n".join(_help(identifier, text)),
        },
        "defaultConfiguration": {"level": level},
        "properties": {"problem.severity": level, "tags": ["training", "cause" if is_cause(identifier) else "finding"]},
    }


def _help(identifier: str, text: str, *, is_plain: bool = False) -> Iterator[str]:
    """Yield the lines of the help: what it means, what to do, and how to accept it."""
    yield text.replace("`", "").replace("*", "") if is_plain else text
    tries = things_to_do(identifier)
    if tries:
        yield "\nWhat to do, in this order:\n"
        yield from (f"{place}. {one}" for place, one in enumerate(tries, 1))
    mark = "" if is_plain else "`"
    yield f"\nTo accept it: {mark}{way_to_allow(IDENTIFIERS[identifier])}{mark}."


def _result(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    tries = "\n".join(f"{place}. {one}" for place, one in enumerate(problem.tries, 1))
    result: dict[str, Any] = {
        "ruleId": problem.rule,
        "level": problem.level,
        "message": {
            "text": f"{problem.message} {problem.advice}".strip(),
            "markdown": f"**{problem.name}**. {problem.message}"
            + (f"\n\nTry, in this order:\n\n{tries}" if tries else ""),
        },
        "locations": [_location(location_of_class(outcome.kind), problem.layers)],
        "partialFingerprints": {"gradwatch/v1": problem.fingerprint},
    }
    if problem.rule in IDENTIFIERS:
        result["ruleIndex"] = list(IDENTIFIERS).index(problem.rule)
    if outcome.baseline:  # of all results or of none (3.27.23)
        why = {"kind": "external", "status": "accepted", "justification": f"It is in the baseline {outcome.baseline}."}
        result["suppressions"] = [why] if problem.is_known else []
        result["baselineState"] = "unchanged" if problem.is_known else "new"
    return result


def _location(where: Location | None, layers: tuple[str, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {"physicalLocation": _physical(where)} if where else {}
    if layers:
        found["logicalLocations"] = [{"fullyQualifiedName": layer, "kind": "member"} for layer in layers]
    return found


def _physical(where: Location) -> dict[str, Any]:
    inside = {"uri": quote(where.path), "uriBaseId": _ROOT}
    artifact = inside if where.is_inside else {"uri": Path(where.path).as_uri()}
    return {"artifactLocation": artifact, "region": {"startLine": where.line}}


def _invocation(outcome: Outcome) -> dict[str, Any]:
    code = outcome.exit_code
    told = [_notification(outcome)] if outcome.run.trouble else []
    return {
        "executionSuccessful": not told,
        "exitCode": code,
        "exitCodeDescription": _EXITS[code],
        "workingDirectory": {"uri": Path.cwd().as_uri() + "/"},
        "toolConfigurationNotifications" if code == WRONG_USE else "toolExecutionNotifications": told,
    }


def _notification(outcome: Outcome) -> dict[str, Any]:
    error = outcome.run.error
    where = location_of_error(error) or location_of_class(outcome.kind)
    told: dict[str, Any] = {"level": "error", "message": {"text": outcome.run.trouble}}
    if where:
        told["locations"] = [_location(where)]
    if error is not None:
        told["exception"] = {"kind": type(error).__name__, "message": str(error)}
    return told
