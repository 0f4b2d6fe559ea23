"""Stored runs, so that only changed programs are trained again."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradwatch

HERE = Path(__file__).parent
SHARED = ("program.py", "sources.py", "networks.py", "training.py", "watching.py")


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@cache
def source_of_gradwatch() -> str:
    """A digest of its Python files: after a change, all watched runs are made again."""
    root = Path(gradwatch.__file__).parent
    return _digest(*(path.read_bytes() for path in sorted(root.rglob("*.py"))))


@cache
def source_of(*names: str) -> str:
    return _digest(*((HERE / name).read_bytes() for name in names))


def describe(value: object) -> str:
    """Describe a program, down to the text of its functions."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__ + str([describe(getattr(value, f.name)) for f in dataclasses.fields(value)])
    if isinstance(value, partial):
        return f"{describe(value.func)}{describe(value.args)}{describe(value.keywords)}"
    if isinstance(value, Mapping):
        return str({key: describe(part) for key, part in value.items()})
    if isinstance(value, (tuple, list)):
        return str([describe(part) for part in value])
    if inspect.isfunction(value):
        closed = [describe(cell.cell_contents) for cell in value.__closure__ or ()]
        return f"{inspect.getsource(value)}{closed}"
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else repr(value)


def key_of(what: str, source: str, program: object, seed: int, *more: str) -> str:
    """Return the key of a run."""
    return _digest(*(part.encode() for part in (what, source, source_of(*SHARED), describe(program), str(seed), *more)))


class Store:
    """A file of lines of JSON: key -> result. Without a file, results last as long as the process.

    Args:
        path: of the file; it is made when it is first written to.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.kept: dict[str, Any] = {}
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            if not text.endswith("\n"):  # the process ended while it wrote the last line
                text = text[: text.rfind("\n") + 1]
                path.write_text(text, encoding="utf-8")
            self.kept = {line["key"]: line["value"] for line in map(json.loads, text.splitlines())}

    def get(self, key: str, make: Callable[[], Any], **note: object) -> Any:
        """Return the result of the key, made if it is missing; ``note`` is written beside it for a reader."""
        if key not in self.kept:
            self.put(key, make(), **note)
        return self.kept[key]

    def put(self, key: str, value: Any, **note: object) -> None:
        self.kept[key] = value
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **note, "value": value}) + "\n")
