"""The layout of docs/design.md: who may import whom, how long a file is, and that public names are explained."""

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gradwatch

ROOT = Path(gradwatch.__file__).parent
DESIGN = ROOT.parent / "docs" / "design.md"
FILES = sorted(ROOT.rglob("*.py"))
PUBLIC = (ROOT / "__init__.py", ROOT / "public.py")  # they may import every room
EXAMPLES = sorted((ROOT.parent / "examples").rglob("*.py"))
LONGEST, SHORTEST = 400, 60  # lines


def rows_of_table(heading: str) -> Iterator[list[str]]:
    """The cells of the table under a heading of the design."""
    section = DESIGN.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    yield from ([cell.strip().replace("\\", "") for cell in row] for row in rows[2:])


def imports_allowed() -> dict[str, set[str]]:
    """Room -> what it may import besides itself; "gradwatch" is the public names."""
    allowed: dict[str, set[str]] = {}
    ground: set[str] = set()
    for rooms, named in rows_of_table("Imports"):
        ground = ground or set(rooms.split(", "))
        names = {name for part in named.split(", ") for name in (ground if part == "the ground" else {part})}
        allowed.update(dict.fromkeys(rooms.split(", "), names))
    return allowed


MAY_IMPORT = imports_allowed()
MAY_IMPORT_LIGHTNING = tuple(
    re.split(r", | and ", re.search(r"^Only (.*) import lightning\.$", DESIGN.read_text(), re.MULTILINE)[1])
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return name_of(path).split("/")[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(["gradwatch", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if name in MODULES]  # `from gradwatch.probe import norms`
            yield from modules or [str(node.module)]


def ours_imported(path: Path) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] == "gradwatch"}


IMPORTERS: dict[str, set[str]] = defaultdict(set)
for _path in FILES:
    for _name in ours_imported(_path):
        IMPORTERS[_name].add(module_of(_path))


@pytest.mark.parametrize("path", [path for path in FILES if path not in PUBLIC], ids=name_of)
def test_imports_only_what_the_design_allows(path: Path) -> None:
    rooms = {name.split(".")[1] if "." in name else "gradwatch" for name in ours_imported(path)}
    assert rooms <= {room_of(path), *MAY_IMPORT[room_of(path)]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_adapters_import_lightning(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert "pytorch_lightning" not in tops
    assert "lightning" not in tops or room_of(path) in MAY_IMPORT_LIGHTNING


def test_every_room_stands_in_the_tables() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms - {"public"} <= set(MAY_IMPORT)
    assert {row[0].strip("`").rstrip("/").removesuffix(".py") for row in rows_of_table("Rooms")} <= rooms


def test_no_import_circle() -> None:
    graph = {module: ours_imported(path) & set(MODULES) for module, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_public_name_hides_a_module(module: str) -> None:
    """``import gradwatch.a.b as b`` gives the module."""
    if module == "gradwatch.__main__":
        return
    found = importlib.import_module(module)
    parent, _, leaf = module.rpartition(".")
    assert not parent or getattr(importlib.import_module(parent), leaf) is found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", [path for path in FILES if not path.stem.startswith("__")], ids=name_of)
def test_no_small_file_has_a_single_importer(path: Path) -> None:
    if len(path.read_text().splitlines()) < SHORTEST:
        assert len(IMPORTERS[module_of(path)]) > 1 or room_of(path) == path.stem, "it belongs into its importer"


def test_docstrings_begin_with_a_verb_or_noun() -> None:
    """Plain English: no docstring begins with a question word or an inverted clause."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    begins = re.compile(r"(What|Whether|How|Which|Where|Why|By)\b")
    named = [
        f"{path.relative_to(ROOT.parent)}:{getattr(node, 'name', 'module')}"
        for path in (*FILES, *EXAMPLES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented) and begins.match(ast.get_docstring(node) or "")
    ]
    assert not named


@pytest.mark.parametrize("name", gradwatch.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    assert getattr(gradwatch, name).__doc__.strip()


def test_public_names_are_sorted_and_unique() -> None:
    assert gradwatch.__all__ == sorted(set(gradwatch.__all__))


def test_the_package_alone_loads_nothing_and_gives_its_names_when_asked() -> None:
    """Lightning and pytest load a module of it at each start, whether it is used or not."""
    code = """
        import sys
        import gradwatch
        print(sorted({"numpy", "torch", "lightning", "rich"} & set(sys.modules)), gradwatch.__version__)
        from gradwatch import *
        print(GradientMonitor.__name__, gradwatch.watch is watch, "Finding" in dir(gradwatch), gradwatch.nn.__name__)
        print(hasattr(gradwatch, "no_such_name"), hasattr(gradwatch, "__wrapped__"))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        f"[] {gradwatch.__version__}",
        "GradientMonitor True True gradwatch.nn",
        "False False",
    ]
