"""``gradwatch check``: a few watched steps, and the result as a table or for machines, held against a baseline."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from gradwatch.commands.baseline import Entry, held_against, read_baseline, updated, write_baseline
from gradwatch.commands.changed import ListedTarget, targets_of
from gradwatch.commands.formats import as_json, workflow_commands
from gradwatch.commands.junit import as_junit
from gradwatch.commands.lightning_config import read_target
from gradwatch.commands.problems import HEALTHY, WRONG_USE, Outcome, in_a_line, problems_of, without_known
from gradwatch.commands.sarif import as_sarif
from gradwatch.commands.target import UsageError, add_target, importable_here, positive
from gradwatch.commands.words import crash_in_full
from gradwatch.identifiers import identifier_of, with_identifier
from gradwatch.preflight.verdict import check_training, known_names
from gradwatch.reporting.terminal import wide_console
from gradwatch.reporting.text import listed, plural
from gradwatch.short_runs.run import SetupFault, as_text
from gradwatch.short_runs.sandbox import isolated

_WHAT = (
    "Train a few steps on a CPU with every layer's gradient watched, and write no file. Ends with 0 when all is "
    "healthy; 1 when something was found, or the training crashed; 2 when the model or the data could not be made, or "
    "a part is missing: the optimizer, the training_step, the batches."
)
_FOR_MACHINES: Mapping[str, Callable[[Outcome], str]] = {"json": as_json, "sarif": as_sarif, "junit": as_junit}
_FILE_WIDTH = 120  # of the text in a file


def add(commands: Any) -> None:
    """Declare the command and its options."""
    smoke = "a smoke test of a training, for CI"
    parser = commands.add_parser("check", help=smoke, description=_WHAT, allow_abbrev=False)
    add_target(parser)
    changed = "check those targets of [tool.gradwatch] in pyproject.toml that these files belong to"
    parser.add_argument("--changed", nargs="*", metavar="FILE", help=changed)
    parser.add_argument("--steps", type=positive, default=20, help="optimizer steps (default: %(default)s)")
    allow = "a cause or finding to ignore, by name or identifier, such as GW101"
    parser.add_argument("--allow", action="append", default=[], metavar="NAME", help=allow)
    parser.add_argument("--traceback", action="store_true", help="all lines of a crash, not only those of your code")
    _add_output(parser)
    parser.set_defaults(run=run, takes_more=True)


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output and baseline")
    group.add_argument(
        "--format",
        choices=("text", "github", *_FOR_MACHINES),
        default="text",
        help="of the result; github is the text and lines that GitHub puts beside the model's code, which are printed "
        "in GitHub Actions anyway (default: %(default)s)",
    )
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there, and print the text")
    group.add_argument("--baseline", type=Path, metavar="JSON", help="file of known problems, which do not fail")
    group.add_argument("--update-baseline", action="store_true", help="write what is found to the baseline")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Check what the command line names, or the targets that changed files belong to; return the exit code."""
    if options.changed is None:
        return _check(options, rest)
    try:
        _require_no_target(options)
        targets = targets_of(options.changed)
    except UsageError as error:
        return _wrong_use(error)
    codes = []
    for target in targets:
        print(f"gradwatch check: {target.name}", flush=True)
        codes.append(_check(_options_for(target, options), [*target.args, *rest]))
    return max(codes, default=HEALTHY)


def _options_for(target: ListedTarget, options: argparse.Namespace) -> argparse.Namespace:
    """Return the options for a target of pyproject.toml: its own come first, and what either allows is allowed."""
    allow = [*options.allow, *target.settings["allow"]]
    return argparse.Namespace(**{**vars(options), **target.settings, "allow": allow})


def _wrong_use(error: Exception) -> int:
    print(f"gradwatch check: {error}", file=sys.stderr)
    return WRONG_USE


def _check(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train and report one target, and return the exit code."""
    try:
        return _trained(options, rest)
    except ValueError as error:
        return _wrong_use(error)


def _require_no_target(options: argparse.Namespace) -> None:
    """Raise a UsageError for an option that goes with a single target alone."""
    single = {"config": "--config", "model": "--model", "data": "--data", "cli": "--cli", "output": "--output"}
    named = [option for name, option in single.items() if getattr(options, name)]
    named += [f"--format {options.format}"] if options.format in _FOR_MACHINES else []
    if named:
        raise UsageError(f"--changed takes its targets from pyproject.toml, so {named[0]} can't be given with it")


def _trained(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train, report, and return the exit code.

    Raises:
        ValueError: for wrong use, in a sentence.
    """
    allow, entries = known_names(options.allow), _entries(options)
    is_for_machines = options.format in _FOR_MACHINES and options.output is None
    began = time.monotonic()
    # A model may print: that goes to stderr where stdout is for a machine.
    with importable_here(), redirect_stdout(sys.stderr) if is_for_machines else nullcontext():
        with isolated():
            target = read_target(options, rest)
        settings = {"steps": options.steps, "options": target.options, "callbacks": target.callbacks}
        result = check_training(target.module, target.data, allow=allow, **settings)
    kind = type(target.module)
    outcome = Outcome(result, kind, problems_of(result, kind), seconds=time.monotonic() - began)
    if options.baseline is not None:
        outcome = _against_baseline(outcome, entries, options)
    _report(outcome, options, is_for_machines=is_for_machines)
    return outcome.exit_code


def _entries(options: argparse.Namespace) -> tuple[Entry, ...]:
    """Return the entries of the baseline, before anything is trained."""
    if options.baseline is None:
        if options.update_baseline:
            raise UsageError("--update-baseline needs the file: --baseline gradwatch-baseline.json")
        return ()
    if options.update_baseline and not options.baseline.exists():
        return ()
    return read_baseline(options.baseline)


def _against_baseline(outcome: Outcome, entries: tuple[Entry, ...], options: argparse.Namespace) -> Outcome:
    held = held_against(outcome, entries, options.baseline)
    if not options.update_baseline:
        return held
    if outcome.run.trouble:
        print(f"The baseline: {options.baseline} stays as it is, as the training did not end", file=sys.stderr)
        return held
    written = tuple(updated(entries, outcome))
    write_baseline(options.baseline, written)
    came, went = len(held.unknown), len(held.fixed)
    print(f"The baseline: {options.baseline}, {came} added, {went} removed", file=sys.stderr)
    return held_against(outcome, written, options.baseline)


def _report(outcome: Outcome, options: argparse.Namespace, *, is_for_machines: bool) -> None:
    run, is_untrained = outcome.run, isinstance(outcome.run.error, SetupFault)
    if run.error is not None:  # on stderr, where a crash is looked for
        told = f"gradwatch check: {run.error}" if is_untrained else crash_in_full(run.error, whole=options.traceback)
        print(told, file=sys.stderr)
    text = Group(*_in_text(outcome))
    if options.format in _FOR_MACHINES:
        written = _FOR_MACHINES[options.format](outcome)
        print(written) if is_for_machines else _write(options.output, written)
    elif options.output is not None:
        _write(options.output, as_text(text, _FILE_WIDTH))
    if not (is_for_machines or is_untrained):
        wide_console().print(text)
    if options.format == "github" or os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(outcome):
            print(line, file=sys.stderr if is_for_machines else sys.stdout)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the result can't be written: {error}") from error


def _in_text(outcome: Outcome) -> Iterator[RenderableType]:
    """Yield the run without what is known, and then in a line each what is known and what is no longer found."""
    left = without_known(outcome)
    if outcome.known and left.is_healthy:
        yield Text(f"nothing new: {left.headline.partition(': ')[2]}", style="bold green")
    else:
        yield from left.shown(with_identifier)
    pages = dict.fromkeys(f"docs/rules/{each.rule}.md" for each in outcome.unknown if identifier_of(each.name))
    if pages:
        yield Text(f"\nMore about it, in the clone of gradwatch: {listed(list(pages))}", style="dim")
    if outcome.known:
        yield Text(f"\nKnown, in {outcome.baseline}: {plural(len(outcome.known), 'problem')}", style="bold yellow")
        yield from (Text(f"  {in_a_line(problem)}") for problem in outcome.known)
    if outcome.fixed:
        head = f"\nNo longer found, in {outcome.baseline}; remove with --update-baseline:"
        yield Text(head, style="bold green")
        yield from (Text(f"  {line}") for line in outcome.fixed)
