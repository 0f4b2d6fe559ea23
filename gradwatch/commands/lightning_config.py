"""LightningCLI, used for its parsing alone: nothing is trained, logged or saved by it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from inspect import Signature, signature
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch.utils.data import DataLoader

from gradwatch.commands.target import UsageError

Read = tuple[LightningModule, "LightningDataModule | None", dict[str, Any], list[Callback]]
# Never made: they are about devices and files, and may need what a small machine has not.
_LEFT_OUT: dict[str, Any] = {"logger": False, "plugins": None, "profiler": None, "strategy": "auto"}
_OF_FIT = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}


class _Parsing(LightningCLI):
    """Makes model and data, and keeps the Trainer's settings instead of a Trainer that could train."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Know what ``fit --print_config`` and a saved config hold besides: ckpt_path and its like."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=_OF_FIT)

    def _add_instantiators(self) -> None:
        """Nothing: it is about checkpoints. Lightning 2.4 has no ``load_from_checkpoint_support`` to switch it off."""

    def before_instantiate_classes(self) -> None:
        """Leave out what a check never uses."""
        super().before_instantiate_classes()
        for name, value in _LEFT_OUT.items():
            self.config[f"trainer.{name}"] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep the settings; what is returned is not trained with."""
        self.options = {**self.config_init["trainer"], **kwargs}
        given = self.options.pop("callbacks", None) or []
        self.callbacks = [given] if isinstance(given, Callback) else list(given)
        self.callbacks += [self.config_init[key] for key in self.parser.callback_keys]
        return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def read(options: argparse.Namespace, rest: Sequence[str]) -> Read:
    """Parse the config and the rest of the command line, and make the model and the data.

    Args:
        options: ``config``, ``model``, ``data`` and ``cli``.
        rest: arguments for LightningCLI.

    Raises:
        UsageError: for a name that leads nowhere.
        Exception: whatever the parser or a constructor raises.
    """
    configs = [yaml.safe_load(Path(path).read_text()) or {} for path in options.config]
    model, given = _found(options.model), _found(options.data)
    data = _as_data_module(given, options.data)
    is_fixed = {"model": _is_flat(configs, "model"), "data": _is_flat(configs, "data") or data is not given}
    args = [part for path in options.config for part in ("--config", path)]
    classes: dict[str, Any] = {"model": None, "data": None}
    for key, found, name in (("model", model, options.model), ("data", data, options.data)):
        if is_fixed[key]:
            classes[key] = _named(key, found)
        elif name:
            args += [f"--{key}", name]
    flat = [_without_init_args(part, is_fixed) for part in rest]
    cli = _cli_class(options.cli)(
        classes["model"],
        classes["data"],
        save_config_callback=None,
        seed_everything_default=False,
        parser_kwargs={"exit_on_error": False, "prog": "gradwatch"},
        args=_typed([*args, *flat]),
        run=False,
    )
    return cli.model, cli.datamodule, cli.options, cli.callbacks


def _typed(args: list[str]) -> ArgsType:
    return args


def _is_flat(configs: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether a config holds arguments of a class that it does not name: the form for a fixed class."""
    sections = [config[key] for config in configs if isinstance(config.get(key), dict)]
    return any(section and "class_path" not in section for section in sections)


def _without_init_args(part: str, is_fixed: dict[str, bool]) -> str:
    for key, fixed in is_fixed.items():
        start = f"--{key}.init_args."
        if fixed and part.startswith(start):
            return f"--{key}.{part.removeprefix(start)}"
    return part


def _named(key: str, given: Any) -> Any:
    if given is None:
        raise UsageError(f"the config gives arguments for the {key} but no class_path; name it: --{key} package.Class")
    return given


def _found(path: str | None) -> Any:
    """What a dotted name leads to."""
    if not path:
        return None
    module, _, name = path.rpartition(".")
    if not module:
        raise UsageError(f"{path!r} has no module; expected package.module.Class")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise UsageError(f"there is no module {error.name!r} for {path!r}, from the current folder on") from error
        raise
    except AttributeError as error:
        raise UsageError(f"module {module!r} has no {name!r}; expected package.module.Class") from error


def _cli_class(path: str | None) -> Any:
    own = _found(path)
    if own is None:
        return _Parsing
    if not (isinstance(own, type) and issubclass(own, LightningCLI)):
        raise UsageError(f"--cli {path} is no subclass of lightning.pytorch.cli.LightningCLI")
    return type("OwnParsing", (_Parsing, own), {})


class _Loaded(LightningDataModule):
    """The loader that a function returned."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__()
        self._loader = loader

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader."""
        return self._loader


def _as_data_module(given: Any, path: str | None) -> Any:
    """The LightningDataModule, or what makes one of a callable that returns a DataLoader."""
    if given is None or (isinstance(given, type) and issubclass(given, LightningDataModule)):
        return given
    if not callable(given):
        raise UsageError(f"--data {path} is a {type(given).__name__}; expected a LightningDataModule or a callable")
    return _loading(given, str(path))


def _loading(function: Callable[..., Any], path: str) -> Callable[..., LightningDataModule]:
    @wraps(function)
    def load(*args: Any, **kwargs: Any) -> LightningDataModule:
        made = function(*args, **kwargs)
        if not isinstance(made, (DataLoader, LightningDataModule)):
            raise UsageError(f"--data {path} returned a {type(made).__name__}; expected a DataLoader")
        return made if isinstance(made, LightningDataModule) else _Loaded(made)

    own: Signature = signature(function)
    load.__signature__ = own.replace(return_annotation=LightningDataModule)  # type: ignore[attr-defined]  # inspect's
    load.__annotations__ = {**getattr(function, "__annotations__", {}), "return": LightningDataModule}
    return load
