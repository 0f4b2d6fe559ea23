"""Write the gallery, ``examples/README.md``, from the results of ``compare.py`` and the docstrings of the files.

python examples/gallery.py comparison comparison-digits
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from gradwatch.examples.comparison.records import ranked, record
from gradwatch.examples.comparison.remedies import find
from gradwatch.examples.comparison.results import Result, load_all
from gradwatch.examples.comparison.scoreboard import number, over_seeds

FOLDER = Path(__file__).parent
MARK = "\n    # --- the remedy"


def write(results: Path, seeds: Path, to: Path = FOLDER / "README.md") -> None:
    """Write the gallery.

    Args:
        results: folder of ``compare.py`` on Fashion-MNIST.
        seeds: its folder on digits, with several seeds.
        to: the file; the pictures go into ``images`` beside it.

    Raises:
        ValueError: when a folder has no results.
    """
    for folder in (results, seeds):
        if not load_all(folder):
            raise ValueError(f"{folder} has no results; expected the folder that compare.py wrote as its --out")
    template = (FOLDER / "comparison" / "gallery.md").read_text(encoding="utf-8")
    parts = {
        "remedies": remedies(ranked(load_all(results))),
        "seeds": over_seeds(load_all(seeds)).markdown().split("\n", 2)[2],
        "cards": "\n\n".join(card(path) for path in with_cards()),
    }
    for name, text in parts.items():
        template = template.replace(f"<!-- {name} -->", text.strip())
    for picture in ("curves.png", "layers.png"):
        shutil.copy(results / picture, to.parent / "images" / picture)
    to.write_text(template, encoding="utf-8")


def remedies(results: Sequence[Result]) -> str:
    """Return the table of all remedies, the best first."""
    header = ["remedy", "test accuracy", "published", "train loss", "first / last at the start", "at the end"]
    lines = [[*header, "steps to 70 %", "findings"], ["---"] * 8]
    for result in results:
        values = record(result)
        ratios = [number(values[f"first_to_last_{when}"], ".0e") for when in ("start", "end")]
        row = [f"[{result.name}]({file_of(result.name)})", number(values["test_accuracy"], ".4f")]
        row += [number(values["published_accuracy"], ".4f"), number(values["train_loss"], ".3f"), *ratios]
        lines.append([*row, number(values["steps_to_70"], ",d"), values["findings"] or "none"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def file_of(name: str) -> str:
    """Return the file of a run's remedy."""
    return find(name).target.split(".")[0] + ".py"


def with_cards() -> list[Path]:
    """Return the baseline's file, then the files with a remedy."""
    marked = [path for path in sorted(FOLDER.glob("*.py")) if MARK in path.read_text(encoding="utf-8")]
    return [FOLDER / "baseline.py", *marked]


def card(path: Path) -> str:
    """Return a file's docstring, under its name.

    Example:
        >>> print(card(FOLDER / "baseline.py").splitlines()[0])
        ### [baseline.py](baseline.py)
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"### [{path.name}]({path.name})\n\n{text.replace('``', '`')}"


if __name__ == "__main__":
    auto_cli(write)
