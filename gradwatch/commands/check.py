"""``gradwatch check``: train a few steps, report what is wrong with the gradients, and end with an exit code."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import traceback
from contextlib import nullcontext, redirect_stdout
from typing import Any

from gradwatch.commands.annotations import workflow_commands
from gradwatch.commands.lightning_config import read_target
from gradwatch.commands.target import add_target, importable_here, positive
from gradwatch.preflight.verdict import check_training, require_known
from gradwatch.reporting.terminal import wide_console
from gradwatch.short_runs.run import Run
from gradwatch.short_runs.sandbox import isolated

HEALTHY, SICK, WRONG_USE = 0, 1, 2
_WHAT = (
    "Train a few steps on a CPU with every layer's gradient watched, and write no file. Ends with 0 when all is "
    "healthy; 1 when something was found, or the training crashed; 2 when the model or the data could not be made."
)


def add(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "check", help="a smoke test of a training, for CI", description=_WHAT, allow_abbrev=False
    )
    add_target(parser)
    parser.add_argument("--steps", type=positive, default=20, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--allow", action="append", default=[], metavar="NAME", help="a cause or finding to ignore")
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
    if result.error is not None:
        traceback.print_exception(result.error)  # on stderr, where a crash is looked for
    print(as_json(result)) if options.json else wide_console().print(result)
    if options.annotations == "github":
        for line in workflow_commands(result, type(target.module)):
            print(line, file=sys.stderr if options.json else sys.stdout)
    return HEALTHY if result.is_healthy else SICK


def as_json(run: Run) -> str:
    """Return strict JSON: infinite numbers are ``"inf"`` or ``"-inf"``, unknown ones (NaN) ``null``.

    Each diagnosis gives the places in ``findings`` of the findings that it explains.

    Example:
        >>> print(as_json(Run("Net"))[:50])
        {"model": "Net", "healthy": false, "steps": 0, "lo
    """
    first, last = run.losses
    findings = list(run.findings)
    result = {
        "model": run.name,
        "healthy": run.is_healthy,
        "steps": run.steps,
        "loss": {"first": first, "last": last},
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
