"""Reading a target as LightningCLI does, used for its parsing alone: nothing is trained, logged or saved by it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import MethodType
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from gradwatch.commands.target import Target, UsageError
from gradwatch.commands.words import did_you_mean, install_extra

# Never instantiated: they are about devices and files, and may need hardware that a small machine has not.
_LEFT_OUT: dict[str, Any] = {"logger": False, "plugins": None, "profiler": None, "strategy": "auto"}
_OF_FIT = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}


def read_target(options: argparse.Namespace, rest: Sequence[str]) -> Target:
    """Make the module and the data.

    Raises:
        UsageError: for a config, a class or an argument that is wrong, in a sentence.
    """
    if find_spec("jsonargparse") is None:
        raise UsageError(f"a model and its data are read by jsonargparse, which is {install_extra('cli')}")
    if not options.config and not options.model:
        raise UsageError("nothing to train; expected --config config.yaml, or --model package.Class")
    for path in options.config:
        if not Path(path).is_file():
            nearest = did_you_mean(path, map(str, [*Path().glob("*.yaml"), *Path().glob("*.yml")]))
            raise UsageError(f"there is no config {path!r}; expected a YAML file of LightningCLI{nearest}")
    try:
        target = _parsed(options, rest)
    except UsageError:
        raise
    except Exception as error:  # whatever a parser, an import or a constructor makes of wrong settings
        is_of_parser = type(error).__name__ == "ArgumentError"
        if is_of_parser:
            raise UsageError(f"{error}{_nearest_option(options, rest)}") from error
        raise UsageError(f"{type(error).__name__}: {error}") from error
    if target.data is None and not is_overridden("train_dataloader", target.module):
        raise UsageError("no data; expected --data package.Class, or a model with a train_dataloader() of its own")
    _make_copyable(target.module)
    return target


def _nearest_option(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """Return the command's own option that is nearest to one that LightningCLI does not know either."""
    own = [f"--{name}" for name in vars(options)]
    given = (part.split("=")[0] for part in rest if part.startswith("--") and "." not in part)
    return next(filter(None, (did_you_mean(part, own) for part in given)), "")


class _Parsing(LightningCLI):
    """Makes model and data, and keeps the Trainer's settings in place of a Trainer that could train."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Accept the arguments of ``fit``, such as ckpt_path: ``fit --print_config`` and a saved config hold them."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=_OF_FIT)

    def _add_instantiators(self) -> None:
        """Do nothing: it is about checkpoints, and Lightning 2.4 has no option to switch it off."""

    def before_instantiate_classes(self) -> None:
        """Leave out the settings that a short run never uses."""
        super().before_instantiate_classes()
        for name, value in _LEFT_OUT.items():
            self.config[f"trainer.{name}"] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Keep the settings; LightningCLI needs a Trainer, but it never trains."""
        self.options = {**self.config_init["trainer"], **kwargs}
        given = self.options.pop("callbacks", None) or []
        self.callbacks = [given] if isinstance(given, Callback) else list(given)
        self.callbacks += [self.config_init[key] for key in self.parser.callback_keys]
        return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def _parsed(options: argparse.Namespace, rest: Sequence[str]) -> Target:
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
    given_args: ArgsType = [*args, *(_without_init_args(part, is_fixed) for part in rest)]
    cli = _cli_class(options.cli)(
        classes["model"],
        classes["data"],
        save_config_callback=None,
        seed_everything_default=False,
        parser_kwargs={"exit_on_error": False, "prog": "gradwatch"},
        args=given_args,
        run=False,
    )
    return Target(cli.model, cli.datamodule, cli.options, cli.callbacks)


def _is_flat(configs: Sequence[dict[str, Any]], key: str) -> bool:
    """Return True if a config has arguments for a class that it does not name, as for a CLI with a fixed class."""
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
    """Import the object that a dotted name leads to."""
    if not path:
        return None
    module, _, name = path.rpartition(".")
    if not module:
        raise UsageError(f"{path!r} has no module; expected package.module.Class")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            nearest = did_you_mean(error.name, _modules_beside(error.name))
            text = f"there is no module {error.name!r} for {path!r}, from the current folder on{nearest}"
            raise UsageError(text) from error
        raise
    except AttributeError as error:
        nearest = did_you_mean(name, vars(import_module(module)))
        raise UsageError(f"module {module!r} has no {name!r}; expected package.module.Class{nearest}") from error


def _modules_beside(name: str) -> list[str]:
    """Return the modules and packages in the folder, from the current one on, in which a module was looked for."""
    package, _, _ = name.rpartition(".")
    folder = Path(*package.split("."))
    found = [*folder.glob("*.py"), *(path.parent for path in folder.glob("*/*.py"))]
    return [".".join(filter(None, (package, path.stem))) for path in found]


def _cli_class(path: str | None) -> Any:
    own = _found(path)
    if own is None:
        return _Parsing
    if not (isinstance(own, type) and issubclass(own, LightningCLI)):
        raise UsageError(f"--cli {path} is no subclass of lightning.pytorch.cli.LightningCLI")
    return type("OwnParsing", (_Parsing, own), {})


class _Loaded(LightningDataModule):
    """A data module of the loader that a function returned."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__()
        self._loader = loader

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader


def _as_data_module(given: Any, path: str | None) -> Any:
    """Return the LightningDataModule, or a function that makes one of a callable that returns a DataLoader."""
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

    # jsonargparse reads the signature: the user's arguments, and a data module where LightningCLI expects one.
    own = signature(function).replace(return_annotation=LightningDataModule)
    load.__signature__ = own  # type: ignore[attr-defined]
    load.__annotations__ = {**getattr(function, "__annotations__", {}), "return": LightningDataModule}
    return load


class _OptimizersOfConfig:
    """The optimizers of a config, which a deep copy of the module makes of its own parameters.

    LightningCLI binds a partial to the module. A deep copy does not look into a bound function, so that the copy would
    train the original's parameters.
    """

    def __init__(self, module: LightningModule, function: partial[Any]) -> None:
        self.module, self.function = module, function

    def make(self) -> Any:
        return self.function(self.module)


def _make_copyable(module: LightningModule) -> None:
    method = vars(module).get("configure_optimizers")
    if isinstance(method, MethodType) and isinstance(method.__func__, partial):
        optimizers = _OptimizersOfConfig(module, method.__func__)
        module.configure_optimizers = optimizers.make  # type: ignore[method-assign]
