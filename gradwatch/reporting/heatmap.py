"""Gradient flow as a heat map: layers by steps.

The flow is read off ``grad_output_norm``, the norm of the gradient at each layer's output. Every layer has one, the
activations and what is frozen too, so no row is empty; and in a healthy network it keeps its size through wide and
narrow layers and through images of any resolution. The root mean square doesn't (average pooling over 8 x 8 divides it
by 64 and the norm by 8 only), nor does the norm of the parameters' gradients, which alternates between
weights and normalization layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwatch.records import Array, Snapshot
from gradwatch.reporting.canvas import add_legend, add_title, every_so_many, label_layers, log_ticks, new_figure
from gradwatch.reporting.keys import layer_values, require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MISSING, _ZERO, _BAD = "#bdbdbd", "#ffffff", "#e6007e"
_TITLES = {
    "grad_norm": "norm of the gradient of each layer's parameters",
    "grad_output_norm": "norm of the gradient at each layer's output",
    "grad_output_rms": "root mean square of the gradient at each layer's output",
}
_HOW_TO_READ = "healthy: one colour. vanishing: dark at the top. exploding: bright at the top"
_MOST_STEPS = 400


def heat_map(history: Sequence[Snapshot], column: str = "grad_output_norm") -> Figure:
    """Layers by measured steps, in log colour: grey has no value, white is exactly zero, magenta is NaN or Inf.

    Args:
        history: Snapshots in order of their steps, at least one; of more than 400 so many are drawn, evenly spread.
        column: what is shown.

    Raises:
        ValueError: for an unknown column, or without a Snapshot.

    Example:
        >>> figure = heat_map([Snapshot(step, ("a", "b"), grad_output_norm=[1e-6, 1.0]) for step in range(5)])
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['a', 'b']
    """
    if not history:
        raise ValueError("there is no Snapshot to draw; give at least one")
    history = [history[i] for i in every_so_many(len(history), _MOST_STEPS)]
    names, values = _matrix(history, column)
    figure, axes = new_figure(len(names))
    low, high = _decades(values)
    # A mesh of cells, not an image: that would be spread over all pixels in several arrays of floats, 50 MB of them.
    across, down = (np.arange(count + 1) - 0.5 for count in reversed(values.shape))
    mesh = axes.pcolormesh(across, down, _logarithm(values), cmap=_colour_map(), vmin=low, vmax=high)
    axes.invert_yaxis()
    bar = figure.colorbar(mesh, pad=0.02, aspect=30)
    powers = log_ticks(low, high)
    bar.set_ticks(powers, labels=[f"1e{power}" for power in powers])
    label_layers(axes, names)
    columns = every_so_many(len(history), 12)
    axes.set_xticks(columns, [str(history[i].step) for i in columns])
    axes.set_xlabel("optimizer step (the measured ones, one column each)")
    add_title(axes, f"Gradient flow: {_TITLES.get(column, column)}\n{_HOW_TO_READ}")
    _explain_colours(axes, values)
    return figure


def _matrix(history: Sequence[Snapshot], column: str) -> tuple[list[str], Array]:
    """Labels and values of the layers that have any, as the latest Snapshot orders them."""
    require_columns([column])
    layers = history[-1].layers
    table = np.full((len(layers), len(history)), np.nan)
    for i, snapshot in enumerate(history):
        found = dict(zip(snapshot.layers, layer_values(snapshot, column).tolist(), strict=True))
        table[:, i] = [found.get(layer, np.nan) for layer in layers]
    rows = np.flatnonzero(~np.isnan(table).all(1)) if not np.isnan(table).all() else np.arange(len(layers))
    return [layers[row] for row in rows], table[rows]


def _logarithm(values: Array) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.ma.masked_invalid(np.where(np.isinf(values), 1e4, np.where(values == 0, -1e4, np.log10(values))))


def _decades(values: Array) -> tuple[float, float]:
    """Ends of the colour scale: four decades at least, so that a healthy network looks even."""
    finite = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log10(finite.min()), np.log10(finite.max())) if len(finite) else (-2.0, -2.0)
    margin = max(4 - (high - low), 0) / 2
    return float(low - margin), float(high + margin)


def _colour_map() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=_MISSING, under=_ZERO, over=_BAD)


def _explain_colours(axes: Axes, values: Array) -> None:
    seen = {
        "no value": (_MISSING, np.isnan(values)),
        "exactly zero": (_ZERO, values == 0),
        "NaN or Inf": (_BAD, np.isinf(values)),
    }
    add_legend(axes, {label: colour for label, (colour, where) in seen.items() if where.any()})
