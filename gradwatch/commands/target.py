"""The module and the data that a command is about, found as LightningCLI finds them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

_EXTRA = 'the command line needs packages that are not installed: pip install "jsonargparse[signatures]" scikit-learn'


class UsageError(ValueError):
    """The command was given something that it can't work with."""


@dataclass(frozen=True)
class Target:
    """What a command works on.

    Attributes:
        module: with the weights that it starts from.
        data: None where the module has loaders of its own.
        options: of the Trainer.
        callbacks: of the Trainer.
    """

    module: LightningModule
    data: LightningDataModule | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare how the target is named."""
    group = parser.add_argument_group(
        "what to train",
        "A config of LightningCLI, or a model and its data; any option of LightningCLI may follow, such as "
        "--model.init_args.lr 0.1 or --trainer.precision bf16-mixed. Classes are found from the current folder on.",
    )
    group.add_argument("-c", "--config", action="append", default=[], metavar="YAML", help="config of LightningCLI")
    group.add_argument("--model", metavar="PKG.CLASS", help="a LightningModule")
    group.add_argument("--data", metavar="PKG.CLASS", help="a LightningDataModule, or what returns a DataLoader")
    group.add_argument("--cli", metavar="PKG.CLASS", help="your own subclass of LightningCLI, for its links")


def read_target(options: argparse.Namespace, rest: Sequence[str]) -> Target:
    """Make the module and the data.

    Args:
        options: what :func:`add_target` declares.
        rest: for LightningCLI.

    Raises:
        UsageError: for a config, a class or an argument that is wrong, in a sentence.
    """
    try:
        from gradwatch.commands.lightning_config import read
    except ImportError as error:
        raise UsageError(_EXTRA) from error
    if not options.config and not options.model:
        raise UsageError("nothing to train; expected --config config.yaml, or --model package.Class")
    for path in options.config:
        if not Path(path).is_file():
            raise UsageError(f"there is no config {path!r}; expected a YAML file of LightningCLI")
    try:
        target = Target(*read(options, rest))
    except UsageError:
        raise
    except Exception as error:  # whatever a parser, an import or a constructor makes of wrong settings
        raise UsageError(_in_words(error)) from error
    if target.data is None and not is_overridden("train_dataloader", target.module):
        raise UsageError("no data; expected --data package.Class, or a model with a train_dataloader() of its own")
    _make_copyable(target.module)
    return target


def _in_words(error: Exception) -> str:
    return str(error) if type(error).__name__ == "ArgumentError" else f"{type(error).__name__}: {error}"


@contextmanager
def importable_here() -> Iterator[None]:
    """Find modules in the current folder, as a script in it would."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


class _Bound:
    """The optimizers of a config, which a deep copy of the module makes of its own parameters.

    LightningCLI binds a partial to the module, and what is in a bound function is not copied: the copy would train
    the original.
    """

    def __init__(self, module: LightningModule, function: partial[Any]) -> None:
        self.module, self.function = module, function

    def make(self) -> Any:
        """What configure_optimizers returns."""
        return self.function(self.module)


def _make_copyable(module: LightningModule) -> None:
    method = vars(module).get("configure_optimizers")
    if isinstance(method, MethodType) and isinstance(method.__func__, partial):
        module.configure_optimizers = _Bound(module, method.__func__).make  # type: ignore[method-assign]  # as it did
