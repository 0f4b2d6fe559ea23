"""Which folder may import which, and that files stay short and public names explained."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradwatch

ROOT = Path(gradwatch.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
GROUND = {"records", "containment", "torch_internals"}
PIPELINE = {*GROUND, "probe", "detectors", "diagnosis", "watch"}

# Folder or module -> what it may import of gradwatch besides its own siblings; "gradwatch" is the public names.
MAY_IMPORT: dict[str, set[str]] = {
    **{part: set() for part in GROUND},
    **dict.fromkeys(("probe", "detectors", "reporting", "nn", "diagnosis"), GROUND),
    "remedies": {*GROUND, "transforms", "reporting"},  # some edit gradients, and a trial's results are shown
    "metrics": {*GROUND, "probe"},  # the norm of a gradient is defined once, in the probe
    "transforms": {*GROUND, "probe"},  # the same
    "intake": {*GROUND, "probe", "detectors"},
    "watch": {*PIPELINE, "intake"},
    "callbacks": {*PIPELINE, "transforms", "reporting", "remedies", "nn", "metrics"},
    "runs": {*PIPELINE, "callbacks", "reporting"},  # one engine for a user's tests, `check` and the preflight
    "preflight": {*GROUND, "probe", "diagnosis", "reporting", "runs"},
    "testing": {"gradwatch", "preflight", "runs"},
    "examples": {"gradwatch"},
    "demo": {"gradwatch", "records", "callbacks", "reporting", "examples"},
    "commands": {"gradwatch", "callbacks", "demo", "preflight", "remedies", "reporting", "runs"},
    "cli": {"commands"},
    "__main__": {"cli"},
}
EXCEPTIONS = {"remedies/one_training.py": {*PIPELINE, "remedies", "callbacks"}, "__init__.py": {*MAY_IMPORT}}
MAY_IMPORT_LIGHTNING = (
    "callbacks/",
    "commands/",
    "demo.py",
    "examples/",
    "preflight/",
    "remedies/one_training.py",
    "runs/",
    "testing.py",
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            # `from gradwatch import probe` is an import of gradwatch.probe
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            folders = [name for name in names if name.startswith("gradwatch.") and name.split(".")[1] in MAY_IMPORT]
            yield from folders if node.module == "gradwatch" and folders else [str(node.module)]


def parts_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imported(path)]
    return {name[1] if len(name) > 1 else "gradwatch" for name in names if name[0] == "gradwatch"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_only_what_stands_before_it(path: Path) -> None:
    part = name_of(path).split("/")[0].removesuffix(".py")
    allowed = EXCEPTIONS.get(name_of(path), {part, *MAY_IMPORT.get(part, ())})
    assert parts_imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_adapters_import_lightning(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert "pytorch_lightning" not in tops
    assert "lightning" not in tops or name_of(path).startswith(MAY_IMPORT_LIGHTNING)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", gradwatch.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    assert getattr(gradwatch, name).__doc__.strip()


def test_public_names_are_sorted_and_unique() -> None:
    assert gradwatch.__all__ == sorted(set(gradwatch.__all__))
