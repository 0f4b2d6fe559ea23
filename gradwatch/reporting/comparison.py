"""Compares two runs: the first step, layer and column in which they differ, and where they part beyond their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwatch.records import Array, Snapshot
from gradwatch.reporting.keys import layer_values
from gradwatch.reporting.reading import Record
from gradwatch.reporting.text import number, plural

# Column -> its name in a sentence. In the order in which a step works them out, so that the first difference of a step
# is a reason and not its consequence: a gradient comes after the loss, and from the last layer to the first.
COLUMNS: Mapping[str, str] = {
    "weight_norm": "norm of the weights",
    "output_rms": "output",
    "loss": "loss",
    "grad_output_norm": "gradient at the output",
    "grad_norm": "gradient",
    "total_norm": "total gradient norm",
    "update_to_weight": "update / weight",
}
# Relative: one value is three times the other. Other seeds alone reach twice: of nine pairs of runs (three small
# networks with three seeds each) two had a value 2.03x and 2.05x apart for three measured steps, and none had one 3x.
TOLERANCE = 2.0
_OF_THE_RUN = ("loss", "total_norm")  # have no layer
_BACKWARD = ("grad_output_norm", "grad_norm")
_NOISES = 3.0  # times a value's typical change from one measured step to the next
_NORMAL = 1.4826  # standard deviation of normal numbers over the median of their sizes
_LASTING = 3  # measured steps in a row, as one of thousands of values is far off at any step
_ROUNDING = 1e-5  # relative; a record has six digits


@dataclass(frozen=True)
class Place:
    """A step, layer and column, and the values of both runs there; without a layer for a value of the whole run."""

    step: int
    layer: str
    column: str
    first: float
    second: float

    @property
    def ratio(self) -> float:
        """Return the second value over the first; NaN where one of them is not finite or zero."""
        known = self.first and math.isfinite(self.first) and math.isfinite(self.second)
        return self.second / self.first if known else math.nan

    def __str__(self) -> str:
        what = COLUMNS[self.column] + (f" of `{self.layer}`" if self.layer else "")
        return f"the {what} is {in_words(self.first)} in A and {in_words(self.second)} in B"


@dataclass(frozen=True)
class Comparison:
    """Two runs, A and B, compared over the steps and layers that both have.

    Attributes:
        steps, layers: that both have.
        differs: the first value that is not the same; None where all are.
        parts: the first value that is apart beyond the tolerance and the noise; None where none is.
        columns: column -> the first place where it is apart; None where it is nowhere. Those that both have.
        farthest: layers whose gradients are the farthest apart at the last common step, the farthest first.
        gaps: what was not compared, in sentences.
        tolerance: relative.
    """

    steps: tuple[int, ...]
    layers: tuple[str, ...]
    differs: Place | None
    parts: Place | None
    columns: Mapping[str, Place | None]
    farthest: tuple[Place, ...]
    gaps: tuple[str, ...]
    tolerance: float

    @property
    def sentence(self) -> str:
        """Return the result in words."""
        if not self.columns:
            return "The runs cannot be compared: they have no value of the same step and layer."
        if self.parts:
            ratio = self.parts.ratio
            times = f", {number(max(ratio, 1 / ratio))}x apart" if ratio > 0 else ""
            return f"The runs part at step {self.parts.step}: {self.parts}{times}."
        if self.differs:
            return f"The runs differ from step {self.differs.step} on ({self.differs}), but nowhere beyond their noise."
        steps = plural(len(self.steps), "step")
        return f"The runs are equal in all {steps}: each value that both records hold is the same."

    @property
    def rule(self) -> str:
        """Return in words when two values are apart."""
        return (
            f"Two values are apart if one is more than {1 + self.tolerance:g}x the other, and more than "
            f"{_NOISES:.0f} times as far as this value typically changes from one measured step to the next, in "
            f"{_LASTING} measured steps in a row; or if only one of them is NaN or Inf."
        )


def compare(first: Record, second: Record, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two runs over the measured steps and layers that both have.

    Example:
        >>> a = [Snapshot(i, ("fc",), grad_norm=[1.0]) for i in range(6)]
        >>> b = [Snapshot(i, ("fc",), grad_norm=[1.0 if i < 3 else 8.0]) for i in range(6)]
        >>> print(compare(Record(a, []), Record(b, [])).sentence)
        The runs part at step 3: the gradient of `fc` is 1.00 in A and 8.00 in B, 8.00x apart.
    """
    histories = [{int(snapshot.step): snapshot for snapshot in run.snapshots} for run in (first, second)]
    steps = tuple(sorted(histories[0].keys() & histories[1].keys()))
    layers = _common([run.snapshots[-1].layers if run.snapshots else () for run in (first, second)])
    pairs = {name: _pair(histories, steps, layers, name) for name in COLUMNS}
    known = {name: pair for name, pair in pairs.items() if (~np.isnan(pair[0]) & ~np.isnan(pair[1])).any()}
    columns = {name: _first(_apart(*pair, tolerance), name, steps, layers, pair) for name, pair in known.items()}
    differing = [_first(_differing(*pair), name, steps, layers, pair) for name, pair in known.items()]
    return Comparison(
        steps,
        layers,
        _earliest(differing),
        _earliest(list(columns.values())),
        columns,
        _farthest(steps, layers, pairs["grad_norm"]) if any(columns.values()) else (),
        tuple(_gaps(first, second, histories, steps, layers)),
        tolerance,
    )


def in_words(value: float) -> str:
    """Return a value as text; NaN and Inf are one."""
    return "NaN or Inf" if math.isinf(value) else number(value)


def _common(layers: Sequence[Sequence[str]]) -> tuple[str, ...]:
    first, second = layers
    return tuple(layer for layer in first if layer in set(second))


def _pair(
    histories: Sequence[Mapping[int, Snapshot]], steps: Sequence[int], layers: Sequence[str], name: str
) -> tuple[Array, Array]:
    first, second = (_table([history[step] for step in steps], layers, name) for history in histories)
    return first, second


def _table(history: Sequence[Snapshot], layers: Sequence[str], name: str) -> Array:
    """Return a column as layers by steps; a value of the whole run as one row."""
    if name in _OF_THE_RUN:
        return np.array([[getattr(snapshot, name) for snapshot in history]], np.float64)
    table = np.full((len(layers), len(history)), np.nan)
    for i, snapshot in enumerate(history):
        places = {layer: place for place, layer in enumerate(snapshot.layers)}
        rows = [row for row, layer in enumerate(layers) if layer in places]
        table[rows, i] = layer_values(snapshot, name)[[places[layers[row]] for row in rows]]
    return table


def _differing(first: Array, second: Array) -> npt.NDArray[np.bool_]:
    """Return where both have a value, and not the same one up to the record's digits."""
    both = ~np.isnan(first) & ~np.isnan(second)
    return both & ~np.isclose(first, second, rtol=_ROUNDING, atol=0)


def _apart(first: Array, second: Array, tolerance: float) -> npt.NDArray[np.bool_]:
    """Return where two values are apart; see :attr:`Comparison.rule`."""
    logs = [_logarithm(values) for values in (first, second)]
    noise = np.maximum(*map(_noise, logs))[:, None]
    with np.errstate(invalid="ignore"):
        distance = logs[1] - logs[0]
    beyond = np.abs(distance) > np.maximum(np.log10(1 + tolerance), _NOISES * noise)
    lasts = np.zeros_like(beyond)
    for sign in (-1, 1):
        lasts |= _lasting(beyond & (np.sign(distance) == sign))
    both = ~np.isnan(first) & ~np.isnan(second)
    result: npt.NDArray[np.bool_] = lasts | (both & (np.isinf(first) != np.isinf(second)))
    return result


def _logarithm(values: Array) -> Array:
    """Return decades; NaN for what is not finite, and minus infinity for zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = np.where(np.isfinite(values), np.log10(np.abs(values)), np.nan)
    return result


def _noise(logs: Array) -> Array:
    """Return for each row the typical change from one step to the next, in decades; zero where none is known."""
    with np.errstate(invalid="ignore"):
        changes = np.abs(np.diff(np.where(np.isfinite(logs), logs, np.nan), axis=1))
    typical = [np.median(row[~np.isnan(row)]) if not np.isnan(row).all() else 0.0 for row in changes]
    return _NORMAL * np.array(typical, np.float64)


def _lasting(where: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where a run of True begins, or goes on, that has enough steps."""
    count = where.shape[1]
    width = min(_LASTING, count)
    starts = np.zeros_like(where)
    for i in range(count - width + 1):
        starts[:, i] = where[:, i : i + width].all(1)
    return starts


def _first(
    where: npt.NDArray[np.bool_], name: str, steps: Sequence[int], layers: Sequence[str], pair: tuple[Array, Array]
) -> Place | None:
    """Return the first place in time; of several in a step the one that was worked out first."""
    columns = np.flatnonzero(where.any(0))
    if not len(columns):
        return None
    column = int(columns[0])
    rows = np.flatnonzero(where[:, column])
    row = int(rows[-1 if name in _BACKWARD else 0])
    return _place(name, steps, layers, pair, row, column)


def _place(
    name: str, steps: Sequence[int], layers: Sequence[str], pair: tuple[Array, Array], row: int, column: int
) -> Place:
    layer = "" if name in _OF_THE_RUN else layers[row]
    return Place(steps[column], layer, name, float(pair[0][row, column]), float(pair[1][row, column]))


def _earliest(places: Sequence[Place | None]) -> Place | None:
    return min((place for place in places if place), key=lambda place: place.step, default=None)


def _farthest(
    steps: Sequence[int], layers: Sequence[str], pair: tuple[Array, Array], most: int = 5
) -> tuple[Place, ...]:
    with np.errstate(invalid="ignore"):
        distance = np.abs(_logarithm(pair[1][:, -1]) - _logarithm(pair[0][:, -1]))
    rows = [row for row in np.argsort(-distance, kind="stable").tolist() if distance[row] > 0][:most]
    return tuple(_place("grad_norm", steps, layers, pair, row, -1) for row in rows)


def _gaps(
    first: Record,
    second: Record,
    histories: Sequence[Mapping[int, Snapshot]],
    steps: Sequence[int],
    layers: Sequence[str],
) -> list[str]:
    """Return in sentences what only one of the runs has."""
    gaps = []
    for name, run, history in (("A", first, histories[0]), ("B", second, histories[1])):
        own = [step for step in history if step not in set(steps)]
        if own:
            where = f"from {min(own)} to {max(own)}" if len(own) > 1 else f"step {own[0]}"
            gaps.append(f"{plural(len(own), 'measured step')} of {name} alone, {where}.")
        alone = [layer for layer in (run.snapshots[-1].layers if run.snapshots else ()) if layer not in set(layers)]
        if alone:
            some = f"{', '.join(f'`{layer}`' for layer in alone[:3])}{' and more' if len(alone) > 3 else ''}"
            gaps.append(f"{plural(len(alone), 'layer')} of {name} alone: {some}.")
    return gaps


def settings_apart(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the settings that are not the same in two runs, except when they began.

    Example:
        >>> settings_apart({"precision": "32", "started": "1"}, {"precision": "16", "started": "2"})
        {'precision': ('32', '16')}
    """
    names = dict.fromkeys([*first, *second])
    pairs = {name: (first.get(name, ""), second.get(name, "")) for name in names if name != "started"}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
