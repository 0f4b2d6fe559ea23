"""No text installs gradwatch by its name from an index, where anybody might publish under it."""

import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
FOLDERS = ("gradwatch", "examples", "docs", ".github")
ENDINGS = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".ipynb", ".cfg"}
FILES = [
    *(path for path in ROOT.iterdir() if path.suffix in ENDINGS),
    *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS),
]
INSTALL = re.compile(r"(?:pip3?|uv|pipx|poetry|conda|mamba)\s+(?:pip\s+)?(?:install|add)\b(.*)")
BY_NAME = re.compile(r"(?<![\w./-])gradwatch(?![\w/-]|\.\w)", re.IGNORECASE)


def installs_by_name(line: str) -> bool:
    found = INSTALL.search(line)
    command = found.group(1).split("&&")[0] if found else ""  # what follows may be a call of gradwatch
    return bool(BY_NAME.search(command))


def test_no_file_says_to_install_it_by_name() -> None:
    lines = [(path.name, line) for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(FILES) > 100
    assert [found for found in lines if installs_by_name(found[1])] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pip install gradwatch", True),
        ("To have it, pip install gradwatch.", True),
        ('python -m pip install -U "gradwatch[cli]"', True),
        ("pip install gradwatch==0.1", True),
        ('run: pip install -e . "gradwatch[cli]"', True),
        ("uv pip install 'gradwatch'", True),
        ("uv add gradwatch", True),
        ('pip install -e "./tools/gradwatch[cli]"', False),
        ('pip install -e ".[cli]" && gradwatch demo', False),
        ("pip install matplotlib", False),
        ("pip install git+https://example.org/gradwatch.git", False),
    ],
)
def test_the_lines_it_looks_for(line: str, expected: bool) -> None:
    assert installs_by_name(line) is expected


def test_the_releases_of_lightning_that_were_malware_are_left_out() -> None:
    requirement = re.search(r'"lightning(>=[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert requirement
    releases = SpecifierSet(requirement.group(1))
    assert [release for release in ("2.4.0", "2.6.1", "2.6.2", "2.6.3", "2.6.6") if release in releases] == [
        "2.4.0",
        "2.6.1",
        "2.6.6",
    ]
