"""The targets of ``[tool.gradwatch]`` in pyproject.toml, and which of them changed files belong to."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from gradwatch.commands.target import UsageError, positive
from gradwatch.commands.words import did_you_mean

_FILE = "pyproject.toml"
_NAMED = ("model", "data", "cli")
_KEYS = ("config", *_NAMED, "steps", "allow", "baseline", "args", "files")
_EXAMPLE = '[[tool.gradwatch.check]]\nconfig = "config.yaml"'
_SOURCES = ("", "src")  # where a project's modules are, from the current folder on


@dataclass(frozen=True)
class ListedTarget:
    """One ``[[tool.gradwatch.check]]`` of pyproject.toml.

    Attributes:
        name: to tell it from the others.
        settings: options of the command by their names in the namespace.
        args: further options, of LightningCLI.
        files: patterns of more files that it depends on, such as ``data/*.csv``.
    """

    name: str
    settings: Mapping[str, Any]
    args: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=())

    def is_touched_by(self, changed: Iterable[Path]) -> bool:
        """Return True if one of the files is a config, or holds the model, the data, or what these import."""
        paths = {path.resolve() for path in changed}
        if any(fnmatchcase(_shown(path), pattern) for path in paths for pattern in self.files):
            return True
        return bool(paths & set(self._sources()))

    def _sources(self) -> Iterator[Path]:
        configs = [Path(path) for path in self.settings.get("config", ())]
        yield from (path.resolve() for path in (*configs, Path(_FILE)))
        classes = [str(self.settings[key]) for key in _NAMED if self.settings.get(key)]
        yield from files_imported_by([*classes, *(name for path in configs for name in _class_paths(path))])


def targets_of(changed: Sequence[str]) -> list[ListedTarget]:
    """Return the targets that changed files belong to; all of them where pyproject.toml is among the files.

    Raises:
        UsageError: when pyproject.toml is missing, can't be read, or has no targets or wrong ones.
    """
    paths = [Path(path) for path in changed]
    return [target for target in listed_targets() if target.is_touched_by(paths)]


def listed_targets() -> list[ListedTarget]:
    """Return all targets of the pyproject.toml in the current folder."""
    table = _tool_table()
    entries = table.get("check") if isinstance(table, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{_FILE} lists nothing to check; expected, once for each model:\n\n{_EXAMPLE}")
    return [_target(entry, place) for place, entry in enumerate(entries, 1)]


def _tool_table() -> Any:
    try:
        text = Path(_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"there is no {_FILE} in {Path.cwd()}, which lists what to check:\n\n{_EXAMPLE}") from error
    tomllib = _toml_parser()
    try:
        read: Mapping[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{_FILE} can't be read: {error}") from error
    return read.get("tool", {}).get("gradwatch", {})


def _toml_parser() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        import tomli
    except ImportError as error:
        raise UsageError(
            f"{_FILE} is read by tomllib of Python 3.11, or before it by tomli: pip install tomli"
        ) from error
    return tomli


def _target(entry: Any, place: int) -> ListedTarget:
    where = f"[[tool.gradwatch.check]] number {place} of {_FILE}"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is a {type(entry).__name__}; expected a table:\n\n{_EXAMPLE}")
    for key in entry:
        if key not in _KEYS:
            raise UsageError(f"{where} has {key!r}{did_you_mean(key, _KEYS)}; expected {', '.join(_KEYS)}")
    if not (entry.get("config") or entry.get("model")):
        raise UsageError(f"{where} names nothing to train; expected config or model")
    settings: dict[str, Any] = {"config": _texts(entry, "config", where), "allow": _texts(entry, "allow", where)}
    settings |= {key: entry.get(key) for key in _NAMED}
    if "steps" in entry:
        settings["steps"] = _steps(entry["steps"], where)
    if "baseline" in entry:
        settings["baseline"] = Path(str(entry["baseline"]))
    name = ", ".join([*settings["config"], *([entry["model"]] if entry.get("model") else [])])
    return ListedTarget(name, settings, tuple(_texts(entry, "args", where)), tuple(_texts(entry, "files", where)))


def _texts(entry: Mapping[str, Any], key: str, where: str) -> list[str]:
    given = entry.get(key, [])
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise UsageError(f"{where} has {key} = {given!r}; expected a text or a list of texts")
    return listed


def _steps(given: Any, where: str) -> int:
    try:
        return positive(str(given))
    except Exception as error:
        raise UsageError(f"{where} has steps = {given!r}; expected a whole number of at least 1") from error


def _class_paths(config: Path) -> Iterator[str]:
    """Yield the classes that a config of LightningCLI names; none where it can't be read, which the check tells."""
    try:
        waiting = [yaml.safe_load(config.read_text(encoding="utf-8"))]
    except (OSError, ValueError, yaml.YAMLError):
        return
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("class_path"), str):
                yield part["class_path"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def files_imported_by(classes: Iterable[str]) -> set[Path]:
    """Return the files of the current project that hold classes, and all that these import, without running any.

    Example:
        >>> files_imported_by(["torch.nn.Linear"])
        set()
    """
    waiting = {path for name in classes for path in _files_of(name.split("."))}
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= {other for name in _imports(path) for other in _files_of(name.split("."))} - found
    return found


def _files_of(parts: Sequence[str]) -> Iterator[Path]:
    """Yield the files that importing a dotted name reads: the packages on the way, and the module."""
    for root in _SOURCES:
        for end in range(1, len(parts) + 1):
            base = Path(root, *parts[:end])
            yield from (path.resolve() for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file())


def _imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it; relative ones from its package on."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # importing it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = _package_of(path)[: -node.level + 1 or None] if node.level else []
            base = [*package, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _package_of(path: Path) -> list[str]:
    folder = path.parent
    roots = [Path(root).resolve() for root in reversed(_SOURCES)]  # src first: it is inside of the other
    root = next((root for root in roots if folder.is_relative_to(root)), folder)
    return list(folder.relative_to(root).parts)


def _shown(path: Path) -> str:
    here = Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()
