"""The pictures of a run: layers by steps, the layers of one step, and the calls of a recurrent layer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradwatch.containment import say
from gradwatch.records import Array, Finding, Snapshot
from gradwatch.reporting.keys import layer_values, require_columns
from gradwatch.reporting.short_names import short_names
from gradwatch.reporting.text import listed, number, open_kinds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "bars", "calls_picture", "draw_run", "heat_map", "png"]

NO_MATPLOTLIB = (
    "pictures need matplotlib, which is not installed; it belongs to the extra 'report': pip install matplotlib"
)
_RECURRENT_CALLS = 5  # fewer calls are a module that is used twice, such as one ReLU for two layers
_MOST_CALL_PICTURES = 4
_MOST_LABELS = 50
_MOST_STEPS = 400
_MOST_KINDS = 3  # of findings in the legend of the heat map, which is one line
_SHARED = (-8.0, 2.0)  # decades of colour: a healthy run spans two or three of them, and 1e-8 of a float32 is rounding
_MOST_DECADES = 150  # on both sides of 1: matplotlib cannot place the ticks of an axis that reaches much further
_TITLES = {
    "grad_norm": "norm of the gradient of each layer's parameters",
    "grad_output_norm": "norm of the gradient at each layer's output",
    "grad_output_rms": "root mean square of the gradient at each layer's output",
}
_HEAT_MAP_HELP = "healthy: one colour. vanishing: dark at the top. exploding: bright at the top"
_CALLS_HELP = "healthy: level. vanishing: falls to the left. exploding: rises to the left"
_MISSING, _ZERO, _BAD = "#bdbdbd", "#ffffff", "#e6007e"
_MARK = "#ff5a36"  # of findings in the heat map: seen on all colours of its scale, and unlike NaN's
_NONE = "no finding"
_HEALTHY, _OTHER = "#7fa6c4", "#8c564b"
_COLOURS = {
    "nonfinite": _BAD,
    "exploding": "#d7191c",
    "vanishing": "#5e3c99",
    "stalled": "#1a1a1a",
    "dead": "#6b6b6b",
    "saturated": "#e08214",
    "unmoved": "#8be28b",
    "carried-over": "#ffe600",
    "idle-clip": "#ff66ff",
    "not-learning": "#aaaaaa",
    "out-of-sync": "#1a1aff",
    "broadcast": "#00a087",
}


class Picture(NamedTuple):
    """A finished PNG, and its size in pixels."""

    content: bytes
    height: int
    width: int


def draw_run(history: Sequence[Snapshot], findings: Iterable[Finding] = ()) -> dict[str, Picture]:
    """Return the pictures of a run by their tags; none without layers.

    Without matplotlib there are none either, and it is said once how to install it.
    """
    if not history or not history[-1].layers:
        return {}
    latest = history[-1]
    recurrent = [layer for layer, norms in latest.calls.items() if len(norms) >= _RECURRENT_CALLS]
    drawings: dict[str, Callable[[], Figure]] = {
        "1 layers by steps": partial(heat_map, history, findings=tuple(findings)),
        "2 latest step": partial(bars, latest, findings),
        **{f"3 calls of {layer}": partial(calls_picture, latest, layer) for layer in recurrent[:_MOST_CALL_PICTURES]},
    }
    try:
        with _without_leftovers():
            return {f"gradient_flow/{name}": png(draw()) for name, draw in drawings.items()}
    except ImportError as error:
        _say_once(str(error))
        return {}


@contextmanager
def _without_leftovers() -> Iterator[None]:
    """Free what the body leaves behind: figures are full of cycles, and each would wait with 10 MB to be collected.

    No collection runs in the body, so all that it makes is in the youngest generation. To collect that one takes a
    hundredth of the time of a whole collection, which goes through all objects of torch and Lightning (0.3 s).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if was_enabled:
            gc.enable()


def heat_map(history: Sequence[Snapshot], column: str = "grad_output_norm", findings: Iterable[Finding] = ()) -> Figure:
    """Draw layers by measured steps, in log colour: grey has no value, white is exactly zero, magenta is NaN or Inf.

    The colours are the same for all runs, from 1e-8 to 100, so that they can be compared; a run that is mostly outside
    has its own. A frame marks the layers and steps of a finding, a line the step where one without layers opened.
    Of more than 400 Snapshots about that many are drawn.

    Raises:
        ValueError: for an unknown column, or without a Snapshot.
    """
    if not history:
        raise ValueError("there is no Snapshot to draw; give at least one")
    history = [history[i] for i in every_so_many(len(history), _MOST_STEPS)]
    names, values = layers_by_steps(history, column)
    figure, axes = _new_figure(len(names))
    low, high = _SHARED if _fits_shared(values) else _decades(values)
    # A mesh of cells, not an image: matplotlib spreads an image over all pixels in several arrays of floats, 50 MB.
    across, down = (np.arange(count + 1) - 0.5 for count in reversed(values.shape))
    mesh = axes.pcolormesh(across, down, _logarithm(values, low, high), cmap=_colour_map(), vmin=low, vmax=high)
    axes.invert_yaxis()
    bar = figure.colorbar(mesh, pad=0.02, aspect=30)
    powers = log_ticks(low, high)
    bar.set_ticks(powers, labels=[f"1e{power}" for power in powers])
    _label_layers(axes, names)
    columns = every_so_many(len(history), 12)
    axes.set_xticks(columns, [str(history[i].step) for i in columns])
    axes.set_xlabel("optimizer step (measured steps only)")
    _add_title(axes, f"Gradient flow: {_TITLES.get(column, column)}\n{_HEAT_MAP_HELP}")
    kinds = _mark_findings(axes, findings, names, [snapshot.step for snapshot in history])
    _explain_colours(axes, values, kinds)
    return figure


def bars(snapshot: Snapshot, findings: Iterable[Finding] = ()) -> Figure:
    """Draw the gradient norm of each layer's parameters on a log axis; open findings colour their layers.

    A layer without parameters is drawn, as a square, only if a finding is about it. Zero has no bar; the bar of NaN
    and Inf has the whole width.
    """
    kinds = open_kinds(snapshot, findings)
    norms = layer_values(snapshot, "grad_norm")
    rows = [row for row, layer in enumerate(snapshot.layers) if not np.isnan(norms[row]) or layer in kinds]
    shown = [_kind(norms[row], kinds.get(snapshot.layers[row], ())) for row in rows]
    figure, axes = _new_figure(len(rows))
    _draw_bars(axes, norms[rows], [_colour(kind) for kind in shown])
    _label_layers(axes, [snapshot.layers[row] for row in rows])
    axes.set_xlabel("gradient norm (log scale)")
    _add_title(axes, f"Gradient norm of each layer's parameters at step {snapshot.step}")
    _add_legend(axes, {kind: _colour(kind) for kind in sorted({*shown} - {_NONE})})
    return figure


def calls_picture(snapshot: Snapshot, layer: str) -> Figure:
    """Draw the norm of the gradient at a layer's output at each call, or at its input at each time step, on a log axis.

    Raises:
        ValueError: when the layer was called only once; it lists the layers that were called more often.
    """
    if layer not in snapshot.calls:
        raise ValueError(f"{layer!r} was not called more than once; expected one of {list(snapshot.calls)}")
    norms = snapshot.calls[layer]
    figure, axes = _new_figure(rows=8)
    low, high = _limits(norms)
    calls, infinite = np.arange(1, len(norms) + 1), np.isinf(norms)
    drawn = np.where((norms > 0) & ~infinite, np.minimum(norms, high), np.nan)
    axes.plot(calls, drawn, marker="o", ms=4, color=_HEALTHY)
    axes.plot(calls[infinite], np.full(infinite.sum(), high), "x", color=_BAD, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.grid(alpha=0.3)
    axes.set_xlabel("call in the forward pass (time step)")
    axes.set_ylabel("gradient norm (log scale)")
    where = "input" if snapshot.takes_steps(layer) else "output"
    title = f"Gradient over the {snapshot.calls_as_text(layer)} of {layer}: norm at the {where}, step {snapshot.step}"
    _add_title(axes, f"{title}\n{_CALLS_HELP}")
    _add_legend(axes, {"NaN or Inf": _BAD} if infinite.any() else {})
    return figure


def png(figure: Figure) -> Picture:
    """Return a figure as a PNG; it can't be used afterwards.

    Example:
        >>> content, height, width = png(bars(Snapshot(0, ("a",))))
        >>> content[1:4], height, width
        (b'PNG', 532, 900)
    """
    canvas: Any = figure.canvas
    with BytesIO() as file:
        canvas.print_png(file)
        width, height = canvas.get_width_height()
        content = file.getvalue()
    figure.clear()
    return Picture(content, height, width)


def layers_by_steps(history: Sequence[Snapshot], column: str) -> tuple[list[str], Array]:
    """Return the names and values of the layers that have any, in the latest Snapshot's order."""
    require_columns([column])
    layers = history[-1].layers
    table = np.full((len(layers), len(history)), np.nan)
    for i, snapshot in enumerate(history):
        found = dict(zip(snapshot.layers, layer_values(snapshot, column).tolist(), strict=True))
        table[:, i] = [found.get(layer, np.nan) for layer in layers]
    rows = np.flatnonzero(~np.isnan(table).all(1)) if not np.isnan(table).all() else np.arange(len(layers))
    return [layers[row] for row in rows], table[rows]


def _logarithm(values: Array, low: float, high: float) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        known = np.clip(np.log10(values), low, high)
        return np.ma.masked_invalid(np.where(np.isinf(values), 1e4, np.where(values == 0, -1e4, known)))


def _fits_shared(values: Array) -> bool:
    """Return True if most values lie on the scale that all runs share."""
    known = np.log10(values[np.isfinite(values) & (values > 0)])
    low, high = _SHARED
    return not len(known) or bool(((known >= low) & (known <= high)).mean() > 0.5)


def _mark_findings(axes: Axes, findings: Iterable[Finding], names: Sequence[str], steps: Sequence[int]) -> list[str]:
    """Mark findings, and return their kinds."""
    from matplotlib.patches import Rectangle

    kinds: dict[str, None] = {}
    for finding in findings:
        begin = min(int(np.searchsorted(steps, finding.step)), len(steps) - 1)
        closed = finding.closed_step
        end = len(steps) if closed is None else max(int(np.searchsorted(steps, closed)), begin + 1)
        owners = {name for each in finding.layers for name in (each, each.rpartition(".")[0])}  # also of parameters
        rows = [row for row, name in enumerate(names) if name in owners]
        look: dict[str, Any] = {"edgecolor": _MARK, "linewidth": 1.5, "facecolor": "none", "zorder": 3}
        for row in rows:
            axes.add_patch(Rectangle((begin - 0.45, row - 0.45), end - begin - 0.1, 0.9, **look))
        if not rows:
            axes.axvline(begin - 0.5, color=_MARK, linestyle="--", linewidth=1.5)
        kinds[finding.kind] = None
    return list(kinds)


def _decades(values: Array) -> tuple[float, float]:
    """Return the ends of the colour scale: at least four decades, so that a healthy network looks even."""
    finite = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log10(finite.min()), np.log10(finite.max())) if len(finite) else (-2.0, -2.0)
    margin = max(4 - (high - low), 0) / 2
    return float(low - margin), float(high + margin)


def _colour_map() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=_MISSING, under=_ZERO, over=_BAD)


def _explain_colours(axes: Axes, values: Array, kinds: Sequence[str]) -> None:
    seen = {
        "no value": (_MISSING, np.isnan(values)),
        "exactly zero": (_ZERO, values == 0),
        "NaN or Inf": (_BAD, np.isinf(values)),
    }
    known = {label: colour for label, (colour, where) in seen.items() if where.any()}
    found = f"found: {listed(kinds, _MOST_KINDS)}"
    _add_legend(axes, known | ({found: _MARK} if kinds else {}))


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
    squares = [colours[row] for row in blank]
    axes.scatter(np.full(len(blank), 0.01), blank, c=squares, marker="s", s=30, transform=inside)
    if len(norms) <= _MOST_LABELS:
        _write_numbers(axes, norms, low, high)


def _write_numbers(axes: Axes, norms: Array, low: float, high: float) -> None:
    for row, norm in enumerate(norms.tolist()):
        where = (max(low, 0 if np.isinf(norm) else min(norm, high)), row)
        text = axes.annotate(number(norm), where, (4, 0), textcoords="offset points", va="center", fontsize=8)
        if np.isinf(norm):
            text.set(text="NaN or Inf", color="white", weight="bold")


def _limits(norms: Array) -> tuple[float, float]:
    """Return powers of ten around the positive, finite norms, with room for a number after the longest bar."""
    finite = norms[np.isfinite(norms) & (norms > 0)]
    low, high = (np.log10(finite.min()), np.log10(finite.max())) if len(finite) else (-1.0, 0.0)
    low, high = np.clip((low, high), -_MOST_DECADES, _MOST_DECADES)
    low = np.floor(min(low, high - 2)) - 0.3
    return float(10**low), float(10 ** (high + 0.12 * (high - low)))


def _new_figure(rows: int) -> tuple[Figure, Axes]:
    """Return a figure that is high enough for some labelled rows, without pyplot and its global state.

    It is small in inches, so that its letters can still be read in the small cards of TensorBoard's Images tab.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    labels = len(every_so_many(rows, _MOST_LABELS))
    figure = Figure(figsize=(6.0, 1.9 + 0.165 * max(labels, 10)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _label_layers(axes: Axes, names: Sequence[str]) -> None:
    """Label a row for each layer, the input at the top as in the terminal's table; of many rows an even choice."""
    rows = every_so_many(len(names), _MOST_LABELS)
    labels = short_names(names, 34)
    axes.set_yticks(rows, [_escaped(labels[row]) for row in rows], fontsize=9)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    labelled = "" if len(rows) == len(names) else f"; {len(rows)} of {len(names)} labelled"
    axes.set_ylabel(f"loss  <-  layers  <-  input{labelled}")


def _add_title(axes: Axes, text: str) -> None:
    """Write a title over the whole width, of which long layer names leave the axes little."""
    figure: Any = axes.figure
    figure.suptitle(_escaped(text), x=0.01, ha="left", fontsize=9)


def _add_legend(axes: Axes, colours: Mapping[str, str]) -> None:
    """Name the colours below the picture, if there are any."""
    from matplotlib.patches import Patch

    figure: Any = axes.figure
    if colours:
        patches = [
            Patch(facecolor=colour, edgecolor="#808080", label=_escaped(label)) for label, colour in colours.items()
        ]
        figure.legend(handles=patches, loc="outside lower right", ncols=len(patches), fontsize=9, frameon=False)


def _escaped(name: str) -> str:
    """Return a name that matplotlib shows unchanged: it takes text between two dollar signs for a formula."""
    return name.replace("$", r"\$")


def every_so_many(count: int, most: int) -> list[int]:
    """Return positions out of ``count`` at an even stride, at most about ``most``, including the last."""
    stride = -(-count // most) or 1
    return [*range(0, count - stride, stride), count - 1] if count else []


def log_ticks(low: float, high: float, most: int = 9) -> list[int]:
    """Return powers of ten in a range of exponents, evenly spaced."""
    first, last = int(np.ceil(low)), int(np.floor(high))
    stride = next(s for s in (1, 2, 3, 4, 5, 10, 20, 50, 100, 1000) if (last - first) / s < most)
    return [power for power in range(first, last + 1) if power % stride == 0]


@cache
def _say_once(message: str) -> None:
    say(message)
