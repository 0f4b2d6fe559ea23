"""The command line: ``gradwatch demo | check | cure | report | compare``."""

from __future__ import annotations

import argparse
import sys

from gradwatch.commands import check, compare, cure, demo, report


def main(args: list[str] | None = None) -> None:
    """Run a command; ``gradwatch --help`` lists them.

    Args:
        args: the command line; None takes the program's own.

    Raises:
        SystemExit: with 1 where a check finds something, with 2 for wrong use, with 130 after Ctrl+C.
    """
    parser = argparse.ArgumentParser(
        prog="gradwatch", description="Which layer's gradient is sick, why, and what to do.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (demo, check, cure, report, compare):
        command.add(commands)
    options, rest = parser.parse_known_args(args)
    if rest and not options.takes_more:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code = options.run(options, rest)
    except KeyboardInterrupt:
        code = 130  # as a shell has it, and not the 1 of a check that finds something
    if code:
        sys.exit(code)
