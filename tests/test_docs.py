"""The pages in docs/ and the project's own files name what is there, and nothing that is not."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import gradwatch
from gradwatch import detectors, remedies, transforms, trial
from gradwatch.records import Cause, Finding, Kind, Snapshot
from gradwatch.reporting.keys import DEFAULT_COLUMNS, RUN_KEYS

tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
YAML_FILES = [
    path
    for pattern in ("*.yml", ".*.yaml", "CITATION.cff", ".github/**/*.yml", "examples/*.yaml")
    for path in ROOT.glob(pattern)
]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]*))?\)")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(part)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_files_outside_of_the_site_lead_somewhere(name: str) -> None:
    for target, anchor in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / target).is_file(), target
            assert not anchor or anchor in anchors((ROOT / target).read_text(encoding="utf-8")), anchor


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(leaves(settings["nav"])) == [name for name in pages if not re.match(r"rules/GW\d+\.md", name)]


def test_the_keys_are_explained() -> None:
    text = page("keys.md")
    fields = {field.name for record in (Snapshot, Finding) for field in dataclasses.fields(record)}
    names = {*fields, *DEFAULT_COLUMNS, *RUN_KEYS, "clipped_share", "skipped_steps"}
    assert sorted(name for name in names if f"`{name}`" not in text and f"`{name}/" not in text) == []


def test_the_guide_names_every_finding_cause_transform_and_remedy() -> None:
    text = page("guide.md")
    flat = " ".join(text.split())
    assert [kind for kind in get_args(Kind) if f"`{kind}`" not in text] == []
    assert [cause for cause in get_args(Cause) if cause != "not known" and cause not in flat] == []
    edits = [name for name in transforms.__all__ if re.match(r"Clip|Norm|Skip|Zero|Add|Perc|Adapt", name)]
    assert [name for name in edits if f"`{name}" not in text] == []


@pytest.mark.parametrize(
    ("package", "name"),
    [
        (package.__name__, name)
        for package in (gradwatch, detectors, remedies, transforms, trial)
        for name in package.__all__
    ],
)
def test_every_public_name_is_in_the_reference(package: str, name: str) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    assert re.search(rf"^::: (gradwatch|{re.escape(package)})\.{name}$", pages, re.MULTILINE)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_yaml_parses(path: Path) -> None:
    assert yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_asks_something(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 0
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == gradwatch.__version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "gradwatch.__version__"
    released = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released
    assert released.groups() == (citation["version"], citation["date-released"])
    assert citation["license"] == PROJECT["project"]["license"]


def test_every_folder_of_the_package_is_packed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "gradwatch").rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders}
    examples = {path.parent.relative_to(ROOT) for path in (ROOT / "examples").rglob("*.py")}
    names |= {".".join(("gradwatch", *folder.parts)) for folder in examples}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        (r".. math:: g \leftarrow g \cdot \min(1, c / \lVert g \rVert_2)", "```text\ng ← g · min(1, c / ‖g‖_2)\n```"),
        (r".. math:: \frac{a - b}{c}", "```text\n(a - b) / c\n```"),
        ("=====  ====\nkey    what\n=====  ====\n``a``  b\n=====  ====", "| key | what |\n| --- | --- |\n| `a` | b |"),
        ("See :class:`~gradwatch.Finding`.", "See `gradwatch.Finding`."),
    ],
)
def test_docstrings_become_markdown(docstring: str, markdown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(DOCS))
    import docstrings

    assert docstrings.as_markdown(docstring) == markdown
