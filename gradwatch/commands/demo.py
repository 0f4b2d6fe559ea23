"""``gradwatch demo``: two networks side by side, one whose gradient vanishes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gradwatch.commands.counts import positive


def add(commands: Any) -> None:
    """Declare the command and its options."""
    what = "Train a network whose gradient vanishes, and its remedied twin, and show what gradwatch sees in both."
    parser = commands.add_parser("demo", help="see it work: train two networks side by side", description=what)
    parser.add_argument("--data-dir", type=Path, help="folder of Fashion-MNIST; without it digits are learnt")
    parser.add_argument("--max-epochs", type=positive, help="default: 100 on digits, 3 on Fashion-MNIST")
    parser.add_argument(
        "--log-dir",
        type=Path,
        default=Path("gradwatch-demo"),
        help="for TensorBoard (default: %(default)s)",
    )
    parser.set_defaults(run=run, takes_more=False)


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Train both; ends the program with a sentence where the data is missing."""
    from gradwatch.demo import run as run_demo

    try:
        run_demo(options.data_dir, options.max_epochs, options.log_dir)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"gradwatch demo: {error}")
    return 0
