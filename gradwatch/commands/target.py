"""The model and the data that a command works on, and how the command line names them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule


class UsageError(ValueError):
    """The command was given something that it can't work with."""


@dataclass(frozen=True)
class Target:
    """A training, as the config or the command line describes it; ``options`` and ``callbacks`` are the Trainer's.

    ``data`` is None where the module has loaders.
    """

    module: LightningModule
    data: LightningDataModule | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name the target."""
    group = parser.add_argument_group(
        "what to train",
        "A config of LightningCLI, or a model and its data; any option of LightningCLI may follow, such as "
        "--model.init_args.lr 0.1 or --trainer.precision bf16-mixed. Classes are found from the current folder on.",
    )
    group.add_argument("-c", "--config", action="append", default=[], metavar="YAML", help="config of LightningCLI")
    group.add_argument("--model", metavar="PKG.CLASS", help="a LightningModule")
    group.add_argument("--data", metavar="PKG.CLASS", help="a LightningDataModule, or what returns a DataLoader")
    group.add_argument("--cli", metavar="PKG.CLASS", help="your own subclass of LightningCLI, for its links")
    parser.set_defaults(command=parser.prog.split()[-1])


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given; expected a whole number of at least 1")
    return int(text)


@contextmanager
def importable_here() -> Iterator[None]:
    """Find modules in the current folder, as a script in it would."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
