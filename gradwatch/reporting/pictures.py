"""Pictures of one step: a bar a layer, and one layer over its calls; and the heat map of many steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradwatch.records import Array, Finding, Snapshot
from gradwatch.reporting.canvas import MOST_LABELS, add_legend, add_title, label_layers, new_figure
from gradwatch.reporting.heatmap import heat_map
from gradwatch.reporting.keys import layer_values
from gradwatch.reporting.words import number, open_kinds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "calls_picture", "heat_map"]

_NONE = "no finding"
_MOST_DECADES = 150  # on both sides of 1: matplotlib cannot place the ticks of an axis that reaches much further
_HEALTHY, _OTHER = "#7fa6c4", "#8c564b"
_COLOURS = {
    "nonfinite": "#e6007e",
    "exploding": "#d7191c",
    "vanishing": "#5e3c99",
    "stalled": "#1a1a1a",
    "dead": "#6b6b6b",
    "saturated": "#e08214",
}


def bars(snapshot: Snapshot, findings: Iterable[Finding] = ()) -> Figure:
    """Gradient norm of each layer's parameters on a log axis; a layer in an open finding has the finding's colour.

    A layer without parameters is there, as a square, only if a finding is about it. Zero has no bar; NaN and Inf have
    one over the whole width.

    Example:
        >>> figure = bars(Snapshot(7, ("a", "b"), grad_norm=[1e-3, 1.0]))
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [0.001, 1.0]
    """
    kinds = open_kinds(snapshot, findings)
    norms = layer_values(snapshot, "grad_norm")
    rows = [row for row, layer in enumerate(snapshot.layers) if not np.isnan(norms[row]) or layer in kinds]
    shown = [_kind(norms[row], kinds.get(snapshot.layers[row], ())) for row in rows]
    figure, axes = new_figure(len(rows))
    _draw_bars(axes, norms[rows], [_colour(kind) for kind in shown])
    label_layers(axes, [snapshot.layers[row] for row in rows])
    axes.set_xlabel("gradient norm (log scale)")
    add_title(axes, f"Gradient norm of each layer's parameters at step {snapshot.step}")
    add_legend(axes, {kind: _colour(kind) for kind in sorted({*shown} - {_NONE})})
    return figure


def _kind(norm: float, kinds: Sequence[str]) -> str:
    return "nonfinite" if np.isinf(norm) else kinds[0] if kinds else _NONE


def _colour(kind: str) -> str:
    return _HEALTHY if kind == _NONE else _COLOURS.get(kind, _OTHER)


def _draw_bars(axes: Axes, norms: Array, colours: Sequence[str]) -> None:
    low, high = _limits(norms)
    drawn = np.where(np.isinf(norms), high, np.clip(norms, 0, high))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.barh(range(len(norms)), np.nan_to_num(drawn), color=colours, height=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    blank = np.flatnonzero(np.isnan(norms)).tolist()
    inside = axes.get_yaxis_transform()  # x as a share of the axes' width
    axes.scatter(
        np.full(len(blank), 0.01), blank, c=[colours[row] for row in blank], marker="s", s=30, transform=inside
    )
    if len(norms) <= MOST_LABELS:
        _write_numbers(axes, norms, low, high)


def _write_numbers(axes: Axes, norms: Array, low: float, high: float) -> None:
    for row, norm in enumerate(norms.tolist()):
        where = (max(low, 0 if np.isinf(norm) else min(norm, high)), row)
        text = axes.annotate(number(norm), where, (4, 0), textcoords="offset points", va="center", fontsize=8)
        if np.isinf(norm):
            text.set(text="NaN or Inf", color="white", weight="bold")


def _limits(norms: Array) -> tuple[float, float]:
    """Powers of ten around what is positive and finite, with room for a number behind the longest bar."""
    finite = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (np.log10(finite.min()), np.log10(finite.max())) if len(finite) else (-1.0, 0.0)
    low, high = np.clip((low, high), -_MOST_DECADES, _MOST_DECADES)
    low = np.floor(min(low, high - 2)) - 0.3
    return float(10**low), float(10 ** (high + 0.12 * (high - low)))


def calls_picture(snapshot: Snapshot, layer: str) -> Figure:
    """Norm of the gradient at a layer's output at each of its calls, or at its input at each time step, on a log axis.

    Raises:
        ValueError: when the layer was called once only; it lists those that were called more often.

    Example:
        >>> figure = calls_picture(Snapshot(7, ("cell",), calls={"cell": np.array([1e-6, 1e-3, 1.0])}), "cell")
        >>> figure.axes[0].lines[0].get_xdata().tolist()
        [1, 2, 3]
    """
    if layer not in snapshot.calls:
        raise ValueError(f"{layer!r} was not called more than once; expected one of {list(snapshot.calls)}")
    norms = np.asarray(snapshot.calls[layer])
    figure, axes = new_figure(rows=8)
    low, high = _limits(norms)
    calls, infinite = np.arange(1, len(norms) + 1), np.isinf(norms)
    drawn = np.where((norms > 0) & ~infinite, np.minimum(norms, high), np.nan)
    axes.plot(calls, drawn, marker="o", ms=4, color=_HEALTHY)
    axes.plot(calls[infinite], np.full(infinite.sum(), high), "x", color=_COLOURS["nonfinite"], clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.grid(alpha=0.3)
    axes.set_xlabel("call in the forward pass (time step)")
    axes.set_ylabel("gradient norm (log scale)")
    where = "input" if snapshot.takes_steps(layer) else "output"
    title = f"Gradient over the {snapshot.calls_as_text(layer)} of {layer}: norm at the {where}, step {snapshot.step}"
    add_title(axes, f"{title}\nhealthy: level. vanishing: falls to the left. exploding: rises to the left")
    return figure
