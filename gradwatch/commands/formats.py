"""The outcome of a check for machines: GitHub's workflow commands and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from gradwatch.commands.problems import Location, Outcome, Problem, location_of_class, location_of_error
from gradwatch.identifiers import identifier_of


def workflow_commands(outcome: Outcome) -> Iterator[str]:
    """Yield a workflow command for a crash, and for each problem that is not in the baseline.

    The lines point at the model's class, or for a crash at the line of the project that raised.

    References:
        GitHub, Workflow commands for GitHub Actions,
        https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions; the escapes are those of
        its toolkit, https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts.
    """
    here = location_of_class(outcome.kind)
    if outcome.run.trouble:
        yield _command("error", location_of_error(outcome.run.error) or here, "crash", outcome.run.trouble)
    for problem in outcome.unknown:
        yield _command(problem.level, here, _title(problem), f"{problem.message} {problem.advice}".strip())


def _title(problem: Problem) -> str:
    kinds = dict.fromkeys(finding.kind for finding in problem.findings) if problem.is_cause else {}
    name = f"{problem.rule} {problem.name}" if problem.rule != problem.name else problem.name
    return f"{name} ({', '.join(kinds)})" if kinds else name


def _command(level: str, where: Location | None, title: str, message: str) -> str:
    given = {"file": where.path, "line": str(where.line)} if where else {}
    properties = {**given, "title": f"gradwatch: {title}"}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {listed}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_json(outcome: Outcome) -> str:
    """Return strict JSON: infinite numbers are ``"inf"`` or ``"-inf"``, unknown ones (NaN) ``null``.

    Each diagnosis gives the places in ``findings`` of the findings that it explains. ``known`` is true for what the
    baseline has: a cause that it lists, and the findings of such a cause.
    """
    run, known = outcome.run, _known(outcome)
    first, last = run.losses
    findings, course = list(run.findings), run.judgement
    result = {
        "model": run.name,
        "class": outcome.model,
        "healthy": run.is_healthy,
        "exit_code": outcome.exit_code,
        "steps": run.steps,
        "loss": {"first": first, "last": last},
        "course": {"verdict": course.course, "steps": course.steps, "needed": course.needed},
        "findings": [
            {"rule": identifier_of(finding.kind), **finding.to_dict(), "known": finding in known}
            for finding in findings
        ],
        "diagnoses": [
            {
                "rule": identifier_of(diagnosis.cause),
                **{name: getattr(diagnosis, name) for name in ("cause", "evidence", "score", "remedies")},
                "findings": [place for place, finding in enumerate(findings) if finding in diagnosis.findings],
                "known": diagnosis.cause in known,
            }
            for diagnosis in run.diagnoses
        ],
        "fixed": list(outcome.fixed),
        "error": run.trouble or None,
    }
    return json.dumps(strict(result), allow_nan=False)


def _known(outcome: Outcome) -> set[Any]:
    """Return the names of the known causes, and the findings that no other problem has."""
    causes = {problem.name for problem in outcome.known if problem.is_cause}
    new = {finding for problem in outcome.unknown for finding in problem.findings}
    return causes | ({finding for problem in outcome.known for finding in problem.findings} - new)


def strict(value: Any) -> Any:
    """Return a value with texts for infinite numbers and None for NaN, which JSON has not.

    Example:
        >>> strict({"value": [float("inf"), float("nan"), 1.0]})
        {'value': ['inf', None, 1.0]}
    """
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
