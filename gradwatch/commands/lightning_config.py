"""Reading a target as LightningCLI does, used for its parsing alone: nothing is trained, logged or saved by it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
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

from gradwatch.commands.cli_calls import CliCall, cli_calls
from gradwatch.commands.target import Target, UsageError
from gradwatch.commands.words import as_typed, did_you_mean, install_extra

# Never instantiated: they are about devices and files, and may need hardware that a small machine has not.
_LEFT_OUT: dict[str, Any] = {"logger": False, "plugins": None, "profiler": None, "strategy": "auto"}
_SETTINGS: dict[str, Any] = {
    "save_config_callback": None,
    "seed_everything_default": False,
    "parser_kwargs": {"exit_on_error": False, "prog": "gradwatch"},
    "run": False,
}
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
            raise UsageError(f"{error}{_nearest_option(options, rest)}{_own_cli(options, rest)}") from error
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
    read = [_read_config(path) for path in options.config]
    configs = [content for _, content in read]
    _require_classes(options, rest, configs)
    model, given = _found(options.model), _found(options.data)
    data = _as_data_module(given, options.data)
    is_fixed = {"model": _is_flat(configs, "model"), "data": _is_flat(configs, "data") or data is not given}
    args = [part for argument, _ in read for part in ("--config", argument)]
    classes: dict[str, Any] = {"model": None, "data": None}
    for key, found, name in (("model", model, options.model), ("data", data, options.data)):
        if is_fixed[key]:
            classes[key] = found
        elif name:
            args += [f"--{key}", name]
    given_args: ArgsType = [*args, *(_without_init_args(part, is_fixed) for part in rest)]
    cli = _cli_class(options.cli)(classes["model"], classes["data"], args=given_args, **_SETTINGS)
    return Target(cli.model, cli.datamodule, cli.options, cli.callbacks)


def _read_config(path: str) -> tuple[str, dict[str, Any]]:
    """Return a config as an argument and as a dict; of one for all of LightningCLI's subcommands the part for ``fit``.

    A whole file is given by its path, since paths in it may be relative to it.
    """
    read = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(read, dict):
        raise UsageError(f"{path} holds a {type(read).__name__}; expected a config of LightningCLI, such as it saves")
    if isinstance(read.get("fit"), dict):
        return yaml.safe_dump(read["fit"]), read["fit"]
    return path, read


def _require_classes(options: argparse.Namespace, rest: Sequence[str], configs: Sequence[dict[str, Any]]) -> None:
    """Raise a UsageError, with the command to type, where neither the config nor an option names a class.

    ``LightningCLI(Net, Data)`` saves the arguments of its classes and not the classes.
    """
    is_named = options.model or any(config.get("model") for config in configs)
    missing = [key for key in ("model", "data") if _is_flat(configs, key) and not getattr(options, key)]
    if not missing and (is_named or any(part.startswith("--model") for part in rest)):
        return
    listed = " and the ".join(missing or ["model"])
    raise UsageError(f"the config does not name the class of the {listed}, {_as_to_type(options, rest, configs)}")


def _as_to_type(options: argparse.Namespace, rest: Sequence[str], configs: Sequence[dict[str, Any]]) -> str:
    """Return the command with all classes, as a call of LightningCLI in the project has them if there is one."""
    call = _likeliest_call(options, configs)
    found = {"model": "package.Model", "data": "package.Data"} if call is None else vars(call)
    lacks = {"model": True, "data": _is_flat(configs, "data"), "cli": call is not None and bool(call.cli)}
    named = {key: getattr(options, key) or (found[key] if lacks[key] else "") for key in lacks}
    classes = [part for key, name in named.items() if name for part in (f"--{key}", name)]
    files = [part for path in options.config for part in ("--config", path)]
    typed = as_typed("gradwatch", options.command, *files, *classes, *rest)
    source = "as LightningCLI(Model, Data) saves it" if call is None else f"but the call at {call.place} does"
    return f"{source}; type: {typed}"


def _likeliest_call(options: argparse.Namespace, configs: Sequence[dict[str, Any]]) -> CliCall | None:
    """Return a call of the project that names a model, by preference one of the CLI that the config is of."""
    calls = [call for call in cli_calls(Path.cwd()) if call.model]
    is_of_own = bool(options.cli) or _is_flat(configs, "optimizer")
    return min(
        calls, key=lambda call: (call.cli != (options.cli or call.cli), bool(call.cli) != is_of_own), default=None
    )


def _own_cli(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """Return a hint at the project's own subclass of LightningCLI, whose options a config may hold."""
    call = None if options.cli else next((call for call in cli_calls(Path.cwd()) if call.cli), None)
    return f"; if the config is one of {call.cli} ({call.place}), add --cli {call.cli}" if call else ""


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
    return type("OwnParsing", (_Parsing, own), {} if _takes_classes(own) else {"__init__": LightningCLI.__init__})


def _takes_classes(cli: type[LightningCLI]) -> bool:
    """Return False for a CLI whose ``__init__`` names its classes itself, so that it can't be given ours."""
    try:
        signature(cli.__init__).bind(None, None, None, args=[], **_SETTINGS)
    except TypeError:
        return False
    return True


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


@cache  # one object for a function: jsonargparse makes a class of it, and a second of the same name is an error
def _loading(function: Callable[..., Any], path: str) -> Callable[..., LightningDataModule]:
    @wraps(function)
    def load(*args: Any, **kwargs: Any) -> LightningDataModule:
        made = function(*args, **kwargs)
        if not isinstance(made, (DataLoader, LightningDataModule)):
            raise UsageError(f"--data {path} returned a {type(made).__name__}; expected a DataLoader")
        return made if isinstance(made, LightningDataModule) else _Loaded(made)

    # jsonargparse makes a class of this name of it, so two functions of one name in two modules need two names.
    load.__qualname__ = path
    # It reads the signature: the user's arguments, and a data module where LightningCLI expects one.
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
