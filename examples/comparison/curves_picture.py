"""Validation accuracy and training loss of all remedies over the epochs: a panel a family, the baseline in grey."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradwatch.examples.comparison.figures import BASELINE, COLOURS, GREY, by_name, new_figure, plain
from gradwatch.examples.comparison.results import Result

COLUMNS = 4
_HIGHEST_LOSS = 10.0  # of guessing it is 2.3; what diverges leaves the panel
_LINE = 0.1  # height of a label, as a share of the panel's

Runs = list[Result]
Family = dict[str, Runs]


def draw(results: Sequence[Result]) -> Figure:
    """Draw the picture; several seeds of a remedy become their mean and their range."""
    names = by_name(results)
    families = families_of(names)
    columns = min(COLUMNS, len(families))
    blocks = math.ceil(len(families) / columns)
    figure: Figure = new_figure(0.8 + 2.8 * columns, 0.6 + 3.4 * blocks)
    grid = figure.subplots(2 * blocks, columns, squeeze=False, height_ratios=[1.5, 1] * blocks)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (title, family) in enumerate(families.items()):
        block, column = divmod(place, columns)
        accuracy, loss = grid[2 * block, column], grid[2 * block + 1, column]
        accuracy.set_title(title, loc="left", fontsize=10, fontweight="bold")
        _draw_family(accuracy, "val_accuracy", family, names.get(BASELINE, []))
        _draw_family(loss, "train_loss", family, names.get(BASELINE, []))
        _set_axes(accuracy, loss, lowest_loss(names), is_first=column == 0)
        _label(accuracy, family)
    grey = f"; in grey: {BASELINE}" if BASELINE in names else ""
    text = f"Validation accuracy and training loss on {results[0].settings.get('dataset')}{grey}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=12)
    return figure


def _set_axes(accuracy: Axes, loss: Axes, lowest: float, is_first: bool) -> None:
    accuracy.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticklabels=[])
    loss.set(yscale="log", ylim=(lowest, _HIGHEST_LOSS), xlabel="epoch")
    loss.minorticks_off()
    for axes, name in ((accuracy, "val. accuracy"), (loss, "train loss")):
        axes.tick_params(labelleft=is_first)
        axes.set_ylabel(name if is_first else "")


def lowest_loss(names: Family) -> float:
    """Return the power of ten below all training losses, at least 0.001."""
    losses = [loss for runs in names.values() for run in runs for loss in run.curves["train_loss"]]
    lowest = min((loss for loss in losses if 0 < loss < _HIGHEST_LOSS), default=1.0)
    return max(1e-3, 10.0 ** math.floor(math.log10(lowest)))


def families_of(names: Family) -> dict[str, Family]:
    """Return the remedies by family; the baselines are a family only if there is no other."""
    families: dict[str, Family] = {}
    for name, runs in names.items():
        families.setdefault(runs[0].family, {})[name] = runs
    if len(families) > 1:
        families.pop(BASELINE, None)
    return families


def _draw_family(axes: Axes, curve: str, family: Family, baselines: Runs) -> None:
    axes.set_axis_on()
    plain(axes)
    axes.grid(axis="y", color="0.92")
    if baselines:
        _draw_curve(axes, baselines, curve, GREY, width=3.5)
    for runs, colour in zip(family.values(), COLOURS * len(family), strict=False):
        _draw_curve(axes, runs, curve, colour)


def _draw_curve(axes: Axes, runs: Runs, curve: str, colour: str, width: float = 1.4) -> None:
    length = min(len(run.curves[curve]) for run in runs)
    values = np.array([run.curves[curve][:length] for run in runs])
    epochs = np.arange(1, length + 1)
    axes.plot(epochs, values.mean(0), color=colour, linewidth=width)
    if len(runs) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def _label(axes: Axes, family: Family) -> None:
    """Write each remedy's name at the end of its line, moved apart if they would overlap."""
    ends = {name: float(np.mean([run.curves["val_accuracy"][-1] for run in runs])) for name, runs in family.items()}
    heights = spread_out(list(ends.values()), _LINE)
    for (name, end), height, colour in zip(ends.items(), heights, COLOURS * len(ends), strict=False):
        axes.text(1.03, height, f"{name} {end:.2f}", transform=axes.transAxes, color=colour, fontsize=9, va="center")


def spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Return the heights, moved apart to at least ``distance``; within 0 to 1 if they fit.

    Example:
        >>> spread_out([0.5, 0.1, 0.5], 0.1)
        [0.5, 0.1, 0.6]
    """
    order = np.argsort(heights, kind="stable")
    placed = np.clip(np.asarray(heights, float)[order], 0, 1)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + distance)
    ceiling = max(1.0, distance * (len(placed) - 1))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - distance
    result = np.empty_like(placed)
    result[order] = placed
    return [round(float(height), 6) for height in result]
