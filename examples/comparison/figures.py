"""Figures without pyplot's global state, colours, names and files of the pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradwatch.examples.comparison.remedies import RUNS
from gradwatch.examples.comparison.results import Result

BASELINE = "baseline"
GREY = "#d0d0d0"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of Okabe and Ito, which colour-blind readers can distinguish; https://jfly.uni-koeln.de/color/."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write the picture at once, so that a crash never leaves a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(part)
    os.replace(part, path)
    return path


def plain(axes: Axes) -> None:
    """Remove the frame lines that are not needed."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, length=2)


def by_name(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the successful runs by remedy, in the order of the registry; unknown remedies last.

    Raises:
        ValueError: when there is none.
    """
    order = [run.name for run in RUNS]
    names: dict[str, list[Result]] = {}
    for result in results:
        if not result.error:
            names.setdefault(result.name, []).append(result)
    if not names:
        raise ValueError("nothing to draw: no run has ended well; expected the folder that compare.py wrote as --out")
    known = [name for name in order if name in names]
    return {name: names[name] for name in [*known, *sorted(names.keys() - set(known))]}
