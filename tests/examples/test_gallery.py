"""The gallery holds the files' docstrings, and its links exist."""

import re
from pathlib import Path

import pytest

from gradwatch.examples.gallery import card, with_cards, write

FOLDER = Path(__file__).parents[2] / "examples"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", with_cards(), ids=lambda path: path.stem)
def test_the_card_is_that_of_the_file(path: Path) -> None:
    assert card(path) in TEXT


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 40
    assert [link for link in links if "://" not in link and not (FOLDER / link).exists()] == []


def test_nothing_was_left_out() -> None:
    assert not re.search(r"<!--|TBD", TEXT)


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no results.*compare\.py"):
        write(tmp_path, tmp_path, tmp_path / "README.md")
