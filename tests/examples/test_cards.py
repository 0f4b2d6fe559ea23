"""Every remedy explains itself, and differs from the baseline in one marked block."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
REMEDIES = sorted(path for path in FOLDER.glob("*.py") if "# --- the remedy ---" in path.read_text())
FIELDS = ("Symptom", "Idea", "Paper", "The change", "Measured", "When not to use it")


def test_there_is_a_remedy_of_every_kind() -> None:
    kinds = {path.stem.split("_")[0] for path in REMEDIES}
    assert {"init", "activation", "optimizer", "schedule", "norm", "skip", "layerwise", "gradient", "clip"} <= kinds
    assert {"lstm", "gru"} <= kinds


@pytest.mark.parametrize("path", REMEDIES, ids=lambda path: path.stem)
def test_the_card_has_all_its_fields(path: Path) -> None:
    card = ast.get_docstring(ast.parse(path.read_text())) or ""
    items = [line[2:].split(":")[0] for line in card.splitlines() if line.startswith("- ")]
    assert tuple(items) == FIELDS
    assert f"``python examples/{path.name}" in card


@pytest.mark.parametrize("path", REMEDIES, ids=lambda path: path.stem)
def test_the_class_is_the_marked_block(path: Path) -> None:
    source = path.read_text()
    assert source.count("# --- the remedy ---") == 1
    models = [
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and "---" in block(source, node)
    ]
    assert len(models) == 1
    before, inside = block(source, models[0]).split("# --- the remedy ---")
    assert "def " not in before
    assert "def " not in inside.split("# -----")[-1]


def block(source: str, node: ast.ClassDef) -> str:
    """A class's lines, with the comment that closes it."""
    lines = source.splitlines()
    return "\n".join(lines[node.lineno - 1 : (node.end_lineno or 0) + 3])
