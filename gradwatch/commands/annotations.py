"""A run's causes and findings as lines that GitHub Actions puts beside the code."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path

from gradwatch.short_runs.run import Run


def workflow_commands(run: Run, kind: type) -> Iterator[str]:
    """Yield a workflow command for each cause, each finding that none explains, and a crash.

    Args:
        run: with the findings and their causes.
        kind: the model's class; the lines point at it, or for a crash at the line of the project that raised.

    Example:
        >>> run = Run("Net", error=ValueError("100%"))
        >>> list(workflow_commands(run, int))
        ['::error title=gradwatch%3A crash::the training raised ValueError: 100%25']

    References:
        GitHub, Workflow commands for GitHub Actions,
        https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions; the escapes are those of
        its toolkit, https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts.
    """
    here = place(kind)
    if run.trouble:
        yield _command("error", (run.error and _raised_at(run.error)) or here, "crash", run.trouble)
    for diagnosis in run.diagnoses:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in diagnosis.findings))
        level = "error" if any(finding.severity == "error" for finding in diagnosis.findings) else "warning"
        tries = f" Try: {'; '.join(diagnosis.remedies)}." if diagnosis.remedies else ""
        title = f"{kinds}, {diagnosis.cause}" if kinds else diagnosis.cause
        yield _command(level, here, title, f"{diagnosis.evidence}{tries}")
    explained = [finding for diagnosis in run.diagnoses for finding in diagnosis.findings]
    for finding in run.findings:
        if finding not in explained:
            yield _command(finding.severity, here, finding.kind, finding.message)


def place(kind: type) -> tuple[str, int] | None:
    """Return file (from the current folder on) and line of a class; None where it has no source.

    Example:
        >>> place(int) is None
        True
    """
    try:
        path, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return None
    return (_shown(path), line) if path else None


def _raised_at(error: BaseException) -> tuple[str, int] | None:
    """Return the deepest line of the traceback that belongs to the project."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not Path(_shown(frame.filename)).is_absolute()]
    own = [frame for frame in own if "site-packages" not in frame.filename and frame.lineno]
    return (_shown(own[-1].filename), own[-1].lineno or 1) if own else None


def _shown(path: str) -> str:
    full, here = Path(path).resolve(), Path.cwd().resolve()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else str(full)


def _command(level: str, where: tuple[str, int] | None, title: str, message: str) -> str:
    given = {"file": where[0], "line": str(where[1])} if where else {}
    properties = {**given, "title": f"gradwatch: {title}"}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {listed}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
