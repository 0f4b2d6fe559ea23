"""docs/rules/ is what docs/rule_pages.py writes from the tables, docstrings and constants of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gradwatch.identifiers import IDENTIFIERS

DOCS = Path(__file__).parents[1] / "docs"
WAY_OUT = "run: python docs/rule_pages.py"


@pytest.fixture(scope="module")
def written() -> Any:
    pytest.importorskip("griffe")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import rule_pages

        return rule_pages.pages()


def test_the_pages_are_up_to_date(written: dict[str, str]) -> None:
    there = {path.name for path in (DOCS / "rules").glob("*.md")}
    assert there == set(written) == {"index.md", *(f"{each}.md" for each in IDENTIFIERS)}, WAY_OUT
    old = [name for name, text in written.items() if (DOCS / "rules" / name).read_text(encoding="utf-8") != text]
    assert not old, WAY_OUT


def test_each_page_says_what_it_means_how_it_is_judged_and_what_to_do(written: dict[str, str]) -> None:
    for name, text in written.items():
        if name != "index.md":
            heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
            assert heads == ["What it means", "How it looks", "What is measured", "What to do", "To accept it"], name
            assert not re.search(r":\w+:`|\.\. math", text), f"{name} has reStructuredText in it"
            assert all((DOCS / "rules" / target).is_file() for target in re.findall(r"\]\((GW\d+\.md)\)", text))


def test_the_code_is_as_the_formatter_has_it() -> None:
    """It formats code in Markdown too, and would then change what the script writes."""
    ruff = shutil.which("ruff") or pytest.skip("ruff is not installed")
    subprocess.run([ruff, "format", "--check", str(DOCS / "rules")], check=True)
