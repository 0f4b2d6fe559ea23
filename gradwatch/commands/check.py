"""``gradwatch check``: a few watched steps, and the result as a table, as JSON or as GitHub annotations."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from gradwatch.commands.lightning_config import read_target
from gradwatch.commands.target import add_target, importable_here, positive
from gradwatch.commands.words import crash_in_full
from gradwatch.places import own_frames
from gradwatch.preflight.verdict import check_training, require_known
from gradwatch.reporting.terminal import wide_console
from gradwatch.short_runs.run import Run, SetupFault
from gradwatch.short_runs.sandbox import isolated


def workflow_commands(run: Run, kind: type) -> Iterator[str]:
    """Yield a workflow command for each cause, each finding that none explains, and a crash.

    The lines point at the model's class, ``kind``, or for a crash at the line of the project that raised.

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
    """Return file (from the current folder on) and line of a class; None where it has no source."""
    try:
        path, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return None
    return (_shown(path), line) if path else None


def _raised_at(error: BaseException) -> tuple[str, int] | None:
    """Return the deepest line of the traceback that belongs to the project."""
    own = [frame for frame in own_frames(error) if not Path(frame.filename).is_absolute()]
    return (own[-1].filename, own[-1].lineno or 1) if own else None


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


HEALTHY, SICK, WRONG_USE = 0, 1, 2
_WHAT = (
    "Train a few steps on a CPU with every layer's gradient watched, and write no file. Ends with 0 when all is "
    "healthy; 1 when something was found, or the training crashed; 2 when the model or the data could not be made, or "
    "a part is missing: the optimizer, the training_step, the batches."
)


def add(commands: Any) -> None:
    """Declare the command and its options."""
    smoke = "a smoke test of a training, for CI"
    parser = commands.add_parser("check", help=smoke, description=_WHAT, allow_abbrev=False)
    add_target(parser)
    parser.add_argument("--steps", type=positive, default=20, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--allow", action="append", default=[], metavar="NAME", help="a cause or finding to ignore")
    parser.add_argument("--traceback", action="store_true", help="all lines of a crash, not only those of your code")
    parser.add_argument("--json", action="store_true", help="the result as JSON, and nothing else on stdout")
    parser.add_argument(
        "--annotations",
        choices=("github", "none"),
        default="github" if os.environ.get("GITHUB_ACTIONS") == "true" else "none",
        help="lines that GitHub puts beside the model's code (default: github in GitHub Actions, else none)",
    )
    parser.set_defaults(run=run, takes_more=True)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Train, report, and return the exit code."""
    # A model may print: with --json that goes to stderr.
    with importable_here(), redirect_stdout(sys.stderr) if options.json else nullcontext():
        try:
            require_known(options.allow)
            with isolated():
                target = read_target(options, rest)
        except ValueError as error:
            print(f"gradwatch check: {error}", file=sys.stderr)
            return WRONG_USE
        settings = {"steps": options.steps, "options": target.options, "callbacks": target.callbacks}
        result = check_training(target.module, target.data, allow=options.allow, **settings)
    if isinstance(result.error, SetupFault):
        print(f"gradwatch check: {result.error}", file=sys.stderr)
        if options.json:
            print(as_json(result))
        return WRONG_USE
    if result.error is not None:  # on stderr, where a crash is looked for
        print(crash_in_full(result.error, whole=options.traceback), file=sys.stderr)
    print(as_json(result)) if options.json else wide_console().print(result)
    if options.annotations == "github":
        for line in workflow_commands(result, type(target.module)):
            print(line, file=sys.stderr if options.json else sys.stdout)
    return HEALTHY if result.is_healthy else SICK


def as_json(run: Run) -> str:
    """Return strict JSON: infinite numbers are ``"inf"`` or ``"-inf"``, unknown ones (NaN) ``null``.

    Each diagnosis gives the places in ``findings`` of the findings that it explains.
    """
    first, last = run.losses
    findings, course = list(run.findings), run.judgement
    result = {
        "model": run.name,
        "healthy": run.is_healthy,
        "steps": run.steps,
        "loss": {"first": first, "last": last},
        "course": {"verdict": course.course, "steps": course.steps, "needed": course.needed},
        "findings": [finding.to_dict() for finding in findings],
        "diagnoses": [
            {
                **{name: getattr(diagnosis, name) for name in ("cause", "evidence", "score", "remedies")},
                "findings": [place for place, finding in enumerate(findings) if finding in diagnosis.findings],
            }
            for diagnosis in run.diagnoses
        ],
        "error": run.trouble or None,
    }
    return json.dumps(_strict(result), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
