"""Pictures of what ``compare.py`` measured, and of what clipping does in front of a cliff.

python examples/plots.py curves FOLDER
python examples/plots.py layers FOLDER
python examples/plots.py surface
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import CLI

from gradwatch.examples.comparison import curves_picture, layers_picture, surface_picture
from gradwatch.examples.comparison.figures import save
from gradwatch.examples.comparison.results import load_all


def curves(results: Path, to: Path | None = None) -> Path:
    """Loss and accuracy of all remedies over the epochs.

    Args:
        results: the folder that ``compare.py`` wrote.
        to: file for the picture; without it ``curves.png`` in that folder.
    """
    return save(curves_picture.draw(load_all(results)), to or results / "curves.png")


def layers(results: Path, to: Path | None = None) -> Path:
    """Gradient norm by layer of all remedies, at the start and at the end.

    Args:
        results: the folder that ``compare.py`` wrote.
        to: file for the picture; without it ``layers.png`` in that folder.
    """
    return save(layers_picture.draw(load_all(results)), to or results / "layers.png")


def surface(to: Path = Path("surface.png")) -> Path:
    """SGD in front of a cliff, with and without clipping.

    Args:
        to: file for the picture.
    """
    return save(surface_picture.draw(), to)


def main(args: list[str] | None = None) -> Path:
    """Draw one of the pictures; ``args`` default to the program's own."""
    try:
        path: Path = CLI([curves, layers, surface], args=args)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return path


if __name__ == "__main__":
    print(main())
