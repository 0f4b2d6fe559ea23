"""The command line: ``gradwatch demo``."""

from __future__ import annotations

import sys
from pathlib import Path


def main(args: list[str] | None = None) -> None:
    """Run a command; ``gradwatch --help`` lists them.

    Args:
        args: the command line; None takes the program's own.
    """
    try:
        from jsonargparse import ArgumentParser
        from jsonargparse.typing import PositiveInt
    except ImportError:
        sys.exit('gradwatch: the command line needs an extra: pip install "gradwatch[all]"')
    demo = ArgumentParser(description="Train a network whose gradient vanishes, and its remedied twin, side by side.")
    demo.add_argument("--data-dir", type=Path | None, help="folder of Fashion-MNIST; without it digits are learnt")
    demo.add_argument("--max-epochs", type=PositiveInt | None, help="default: 100 on digits, 3 on Fashion-MNIST")
    demo.add_argument("--log-dir", type=Path, default=Path("gradwatch-demo"), help="where TensorBoard's logs go")
    parser = ArgumentParser(prog="gradwatch", description="Which layer's gradient is sick, why, and what to do.")
    commands = parser.add_subcommands(required=True)
    commands.add_subcommand("demo", demo, help="train two networks and show what gradwatch sees in both")
    options = parser.parse_args(args)
    run_demo(**options[options.subcommand])


def run_demo(data_dir: Path | None, max_epochs: int | None, log_dir: Path) -> None:
    """``gradwatch demo``."""
    from gradwatch.demo import run

    try:
        run(data_dir, max_epochs, log_dir)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"gradwatch demo: {error}")
