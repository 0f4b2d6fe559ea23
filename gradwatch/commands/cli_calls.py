"""The calls of LightningCLI in a project: they name the classes that a config saved by one of them lacks."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_NOT_OURS = ("site-packages", "node_modules", "__pycache__", "build", "dist")
_MOST_FILES = 2000  # of a project: an error message is not worth a longer search
_BASE = "LightningCLI"


@dataclass(frozen=True)
class CliCall:
    """A call such as ``LightningCLI(Net, Data)``; a class that it does not name is empty.

    Attributes:
        model, data: the classes, as they are imported.
        cli: the project's own subclass of LightningCLI, where it has one.
        place: file and line, from the current folder on.
    """

    model: str
    data: str
    cli: str
    place: str


def cli_calls(folder: Path) -> Iterator[CliCall]:
    r"""Yield the calls in the Python files of a folder, without running any of them.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     _ = (Path(name) / "main.py").write_text("from nets import Net\nLightningCLI(Net)")
        ...     [(call.model, call.place) for call in cli_calls(Path(name))]
        [('nets.Net', 'main.py:2')]
    """
    for path in _sources(folder):
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text) if "CLI(" in text else None
        except (OSError, ValueError, SyntaxError):
            continue
        if tree is not None:
            yield from _calls(tree, path.relative_to(folder))


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the Python files, those near the top first."""
    waiting, seen = [folder], 0
    while waiting and seen < _MOST_FILES:
        inside = sorted(waiting.pop(0).iterdir())
        files = [path for path in inside if path.suffix == ".py" and path.is_file()]
        seen += len(files)
        yield from files
        waiting += [path for path in inside if path.is_dir() and _is_ours(path)]


def _is_ours(folder: Path) -> bool:
    is_environment = (folder / "pyvenv.cfg").exists()
    return not (folder.name.startswith(".") or folder.name in _NOT_OURS or is_environment or folder.is_symlink())


def _calls(tree: ast.Module, path: Path) -> Iterator[CliCall]:
    parts = path.with_suffix("").parts
    module = ".".join(parts[1:] if parts[0] == "src" else parts).removesuffix(".__init__")
    names = dict(_names(tree, module))
    for node in ast.walk(tree):
        called = _dotted(node.func, names) if isinstance(node, ast.Call) else ""
        if not isinstance(node, ast.Call) or not called.endswith("CLI"):
            continue
        given = [_dotted(argument, names) for argument in node.args[:2]] + ["", ""]
        by_key = {keyword.arg: _dotted(keyword.value, names) for keyword in node.keywords}
        model, data = by_key.get("model_class") or given[0], by_key.get("datamodule_class") or given[1]
        own = "" if called.rpartition(".")[2] == _BASE else called
        yield CliCall(model, data, own, f"{path.as_posix()}:{node.lineno}")


def _names(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yield each name that a module defines or imports, with the dotted name that it stands for."""
    package = module.rpartition(".")[0].split(".") if "." in module else []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, f"{module}.{node.name}"
        elif isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
            start = ".".join(base) if node.level else node.module
            yield from ((alias.asname or alias.name, f"{start}.{alias.name}") for alias in node.names)


def _dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """Return the dotted name that an expression stands for; empty where it is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        start = _dotted(node.value, names)
        return f"{start}.{node.attr}" if start else ""
    return ""
