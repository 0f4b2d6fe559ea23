"""The command line: ``gradwatch demo | run | check | cure | report | compare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from gradwatch.commands.words import as_typed, did_you_mean


def main(args: list[str] | None = None) -> None:
    """Run a command; ``gradwatch --help`` lists them, and so does ``gradwatch`` alone.

    Args:
        args: the command line; None takes the program's own.

    Raises:
        SystemExit: with 1 where a check finds something, with 2 for wrong use, with 130 after Ctrl+C.
    """
    given = sys.argv[1:] if args is None else args
    what = "Which layer's gradient is sick, why, and what to do."
    parser = argparse.ArgumentParser(prog=as_typed("gradwatch"), description=what, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gradwatch {_version()}")
    commands = parser.add_subparsers(metavar="command")
    for command in _commands_for(given):
        command.add(commands)
    if not given:
        parser.print_help()
        return
    if not given[0].startswith("-") and given[0] not in commands.choices:
        known = ", ".join(commands.choices)
        parser.error(f"there is no command {given[0]!r}, only {known}{did_you_mean(given[0], commands.choices)}")
    options, rest = parser.parse_known_args(given)
    if rest and not getattr(options, "takes_more", False):
        nearest = did_you_mean(rest[0], (f"--{name.replace('_', '-')}" for name in vars(options)))
        parser.error(f"unrecognized arguments: {' '.join(rest)}{nearest}")
    try:
        code = options.run(options, rest)
    except KeyboardInterrupt:
        code = 130  # as a shell has it, and not the 1 of a check that finds something
    if code:
        sys.exit(code)


def _commands_for(given: Sequence[str]) -> list[ModuleType]:
    """Return the commands; of ``gradwatch run`` that one alone, as a script has to be the first to import torch."""
    from gradwatch.commands import run

    if given and given[0] == "run":
        return [run]
    from gradwatch.commands import check, compare, cure, demo, report

    return [demo, run, check, cure, report, compare]


def _version() -> str:
    try:
        return version("gradwatch")
    except PackageNotFoundError:  # a checkout that is not installed
        return "of a checkout"
