"""The gradient of every layer of all remedies, at the start and at the end: a heat map, beside the test accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradwatch.examples.comparison.figures import by_name, new_figure
from gradwatch.examples.comparison.results import Result

LOWEST, HIGHEST = -8, 2  # powers of ten between which the colours lie

Array = npt.NDArray[np.float64]


def draw(results: Sequence[Result]) -> Figure:
    """Draw the picture, the most accurate remedy at the top; several seeds become their median."""
    names = by_name(results)
    accuracies = {name: float(np.mean([run.test_accuracy for run in runs])) for name, runs in names.items()}
    ranked = sorted(names, key=lambda name: -accuracies[name])
    layers = max((run.layers for runs in names.values() for run in runs), key=len)
    figure: Figure = new_figure(13, 1.9 + 0.27 * len(ranked))
    start, end, bars = figure.subplots(1, 3, width_ratios=[4, 4, 2.2])
    for axes, when in ((start, "start"), (end, "end")):
        _draw_map(axes, np.array([norms(names[name], layers, when) for name in ranked]), layers)
        axes.set_title(f"at the {when}", fontsize=11, loc="left")
    start.set_yticks(range(len(ranked)), ranked, fontsize=9)
    end.set_yticks([])
    _draw_bars(bars, [accuracies[name] for name in ranked])
    text = "Gradient norm of each layer, as the nearest power of ten: first layer left, loss right"
    figure.suptitle(text, x=0.01, ha="left", fontsize=12)
    note = "zero: exactly zero.   -: no gradient, as the layer is frozen or not there yet."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9)
    return figure


def norms(runs: Sequence[Result], layers: Sequence[str], when: str) -> Array:
    """Return the median over the seeds for each layer; NaN for a layer that is missing or has no gradient."""
    of_runs = [dict(zip(run.layers, getattr(run, when), strict=True)) for run in runs]
    values = np.array([[of_run.get(layer, np.nan) for layer in layers] for of_run in of_runs])
    middle: Array = np.median(values, axis=0)
    return middle


def _draw_map(axes: Axes, values: Array, layers: Sequence[str]) -> None:
    colours = colormaps["viridis"].with_extremes(bad="white", under="black", over="#D55E00")
    axes.imshow(_heights(values), aspect="auto", cmap=colours, vmin=LOWEST, vmax=HIGHEST)
    for (row, column), value in np.ndenumerate(values):
        is_dark = value < 10 ** (LOWEST / 2 + HIGHEST / 2)
        look: dict[str, Any] = {"fontsize": 9, "color": "white" if is_dark else "0.15", "ha": "center", "va": "center"}
        axes.text(column, row, _power(value), **look)
    axes.set_xticks(range(len(layers)), [short_name(layer) for layer in layers], fontsize=9, rotation=30)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _heights(values: Array) -> Array:
    """Return powers of ten within the range of the colours; exact zeros are below it, infinities above."""
    with np.errstate(divide="ignore"):
        powers = np.log10(values)
    return np.select([values == 0, np.isinf(values)], [LOWEST - 1, HIGHEST + 1], powers.clip(LOWEST, HIGHEST))


def _power(value: float) -> str:
    if np.isnan(value):
        return "-"
    if value == 0 or np.isinf(value):
        return "zero" if value == 0 else "inf"
    return f"{round(np.log10(value))}".replace("-", "\N{MINUS SIGN}")


def _draw_bars(axes: Axes, accuracies: Sequence[float]) -> None:
    rows = range(len(accuracies))
    axes.barh(rows, accuracies, color="#56B4E9", height=0.7)
    for row, accuracy in enumerate(accuracies):
        axes.text(accuracy + 0.02, row, f"{accuracy:.3f}", va="center", fontsize=8)
    axes.set(ylim=(len(accuracies) - 0.5, -0.5), xlim=(0, 1.2), yticks=[], xticks=[])
    axes.set_title("test accuracy", fontsize=11, loc="left")
    axes.spines[:].set_visible(False)


def short_name(layer: str) -> str:
    """Return the part of a layer's name that differs from the others.

    Example:
        >>> short_name("network.block1.linear"), short_name("network.head")
        ('block1', 'head')
    """
    return layer.removeprefix("network.").removesuffix(".linear")
