"""The columns of a Snapshot, computed from a step's sums on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from gradwatch.probe.constant_prediction import CONSTANT_SUMS, constant_loss
from gradwatch.probe.layers import kind_of, network_order
from gradwatch.probe.sum_layout import Indices, Sums
from gradwatch.probe.trace import SKIPPED
from gradwatch.probe.updates import update_columns
from gradwatch.records import COLUMNS, NAMES, Array, Snapshot

Columns = dict[str, Any]


def _ratio(numbers: Array, of: Array) -> Array:
    """Divide; NaN where ``of`` is 0, which means that nothing was added."""
    result: Array = np.divide(numbers, of, out=np.full(len(of), np.nan), where=of > 0)
    return result


def _known(numbers: Array, counts: Array) -> Array:
    """Return sums, with NaN where nothing was added: a sum of 0 is no measured 0."""
    return np.where(counts > 0, numbers, np.nan)


def layer_columns(sums: Sums, scale: float) -> Columns:
    """Return the columns about the calls of the layers, whose gradients are ``scale`` times too large."""
    energy = _known(sums["energy"], sums["arrived"]) / scale**2
    mean = _ratio(energy, sums["entries"])
    # A gain is a quotient of two gradients: none where the lower one is 0 or not finite.
    healthy = np.where((mean > 0) & np.isfinite(mean), mean, np.nan)
    return {
        "grad_output_norm": np.sqrt(energy),
        "grad_output_rms": np.sqrt(mean),
        "gain": np.sqrt(_ratio(sums["in_energy"] / scale**2, sums["in_entries"]) / healthy),
        "output_rms": np.sqrt(_ratio(sums["out_energy"], sums["out_entries"])),
        "saturated_fraction": _ratio(sums["flat_entries"], sums["bounded_entries"]),
    }


def call_column(sums: Sums, rows: Mapping[int, slice], scale: float) -> dict[int, Array]:
    """Return the norm of the gradient at each call, for layers that were called more than once."""
    norms = np.sqrt(_known(sums["calls"], sums["calls_seen"])) / scale
    # A row has the length that all ranks agreed on, and no call may have come to its end.
    arrived = {layer: norms[row][~np.isnan(norms[row])] for layer, row in rows.items()}
    return {layer: row for layer, row in arrived.items() if len(row) > 1}


def parameter_columns(sums: Sums, names: list[str], owners: tuple[Indices, Indices], length: int) -> Columns:
    """Return the columns about parameters, and about those of each layer; ``owners`` are those of a ModelIndex."""
    squares, sizes = (_known(sums[field], sums["present"]) for field in ("grad", "size"))
    layers, params = owners

    def by_layer(numbers: Array) -> Array:
        # A layer without gradients has NaN, one with some gradients the sum of those.
        here = numbers[params]
        known = ~np.isnan(here)
        total = np.bincount(layers[known], here[known], length).astype(np.float64)  # bincount of nothing is integer
        return _known(total, np.bincount(layers[known], minlength=length).astype(np.float64))

    nonzero, nonfinite = (by_layer(_known(sums[field], sums["present"])) for field in ("nonzero", "nonfinite"))
    read = np.flatnonzero(sums["read"])
    entries = by_layer(sizes)
    # In all processes that hold the parameter: they make the same steps, so one that differs was not seen to be clean.
    carried = (sums["carried"] > 0) & (sums["carried"] == sums["read"]) & (sums["zeros"] == 0)
    return {
        "params": tuple(names[i] for i in read.tolist()),
        "carried_over": tuple(names[i] for i in np.flatnonzero(carried).tolist()),
        "param_grad_norm": np.sqrt(squares[read]),
        "param_size": sums["held"][read],
        "param_weight_norm": np.sqrt(sums["weight"][read]),
        **update_columns(sums, read),
        "update_norm": np.sqrt(by_layer(_known(sums["update"], sums["updated"]))),
        "total_norm": _norm(squares),
        "total_norm_after": _norm(_known(sums["after"], sums["present"])),
        "grad_norm": np.sqrt(by_layer(squares)),
        "weight_norm": np.sqrt(by_layer(_known(sums["weight"], sums["read"]))),
        "nonfinite": nonfinite,
        "zero_fraction": 1 - _ratio(nonzero, entries),
        "size": entries,
    }


def _norm(squares: Array) -> float:
    known = squares[~np.isnan(squares)]
    return math.sqrt(known.sum()) if len(known) else math.nan


_HALF_PRECISION = 0.02  # clip_grad_norm_ may sum norms in bfloat16, of which each is rounded by 0.4 %


_SCALED = ("grad_norm", "param_grad_norm")  # columns that a clip of all gradients multiplies


def before_clip(columns: Mapping[str, Any], bound: float, norm: Any) -> dict[str, Any]:
    """Return the norms before a clip that came before the reading; no bound where the two do not agree.

    The clip may have taken another norm than L2, or other parameters. Then the norms stay those that were read.

    Args:
        columns: total norm, and norms of layers and parameters, as they were read.
        bound: of the clip.
        norm: the total norm that it found; None where the reading came first.

    Example:
        >>> read = {"total_norm": 1.0, "grad_norm": np.array([0.6]), "param_grad_norm": np.array([0.8])}
        >>> before_clip(read, 1.0, 8.0)
        {'total_norm': 8.0, 'grad_norm': array([4.8]), 'param_grad_norm': array([6.4])}
        >>> before_clip(read, 0.5, 0.2), before_clip(read, 1.0, None)
        ({'clip_max_norm': nan}, {})
    """
    if norm is None:
        return {}
    before, read = float(norm), columns["total_norm"]
    if not math.isclose(read, min(before, bound), rel_tol=_HALF_PRECISION):
        return {"clip_max_norm": math.nan}
    factor = max(before / read, 1.0) if 0 < read < math.inf else 1.0
    return {"total_norm": before, **{name: columns[name] * factor for name in _SCALED}}


def trace_columns(sums: Sums, first: int) -> Columns:
    """Return the loss and total norm of each step since the last Snapshot, from step ``first`` on."""
    losses, totals = _ratio(sums["loss"], sums["losses"]), np.sqrt(_known(sums["total"], sums["totals"]))
    totals[totals == SKIPPED] = np.nan
    known = np.flatnonzero(~(np.isnan(losses) & np.isnan(totals)))
    return {"trace_step": known + first, "trace_loss": losses[known], "trace_total_norm": totals[known]}


def chance_of(sums: Sums) -> float:
    """Return the loss of a constant prediction; NaN where it is not known."""
    if sums["classed"][0]:
        return math.log(sums["classes"][0] / sums["classed"][0])
    if sums["constants"][0] != sums["processes"][0] or not sums["losses"][-1]:
        return math.nan
    numbers = [float(sums[name][0] / sums["constants"][0]) for name in CONSTANT_SUMS]
    return constant_loss(numbers, float(sums["loss"][-1] / sums["losses"][-1]))


class Assembly:
    """Makes the Snapshots of one run, with layers in network order, from columns in the order of ``layers``."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = {name: kind_of(module) for name, module in layers.items()}
        self._order: list[int] | None = None
        self._trace = _no_trace()  # of steps without a Snapshot
        self._feeds: tuple[object, tuple[str, ...]] = (None, ())  # the last pairs and order, and what came of them
        self._names: dict[str, tuple[str, ...]] = {}  # of the last Snapshot

    def make(self, step: int, columns: Columns) -> Snapshot | None:
        """Return a Snapshot; None where there is nothing to say. The trace then goes into the next one.

        A step without any gradient is worth a Snapshot only where it ``should_learn``.
        """
        has_news = columns.pop("should_learn") or not np.isnan(columns["total_norm"])
        trace = {name: np.concatenate([earlier, columns.pop(name)]) for name, earlier in self._trace.items()}
        order = self._order_by(columns.pop("first_calls"))
        self._trace = _no_trace() if has_news else trace
        if not has_news:
            return None
        names, kinds = list(self._layers), list(self._layers.values())
        calls, pairs = columns.pop("calls"), columns.pop("pairs")
        fields: dict[str, Any] = {
            **columns,
            "layers": tuple(names[i] for i in order),
            "kinds": tuple(kinds[i] for i in order),
            **trace,
            **{name: columns[name][order] for name in COLUMNS if name in columns},
            "feeds": self._feeds_of(pairs, order),
            "calls": {names[i]: calls[i] for i in order if i in calls},
            "loss": float(trace["trace_loss"][-1]) if len(trace["trace_loss"]) else math.nan,
        }
        return Snapshot(step, **{name: self._shared(name, value) for name, value in fields.items()})

    def _shared(self, name: str, value: Any) -> Any:
        """Return the names of the last Snapshot where they are the same: those of 10,000 layers take over 0.5 MB."""
        if name not in NAMES:
            return value
        if self._names.get(name) != value:
            self._names[name] = value
        return self._names[name]

    def _feeds_of(self, pairs: Sequence[tuple[int, int]] | None, order: Sequence[int]) -> tuple[str, ...]:
        if self._feeds[0] != (pairs, order):  # nearly always they stay: Snapshots then share the texts
            self._feeds = (pairs, order), _feeds(pairs, order)
        return self._feeds[1]

    def _order_by(self, first_calls: Mapping[str, float]) -> list[int]:
        """Return the places of the layers in network order: that of the first step in which one has run."""
        if self._order is None and first_calls:
            places = {name: i for i, name in enumerate(self._layers)}
            self._order = [places[name] for name in network_order(list(places), first_calls)]
        return list(range(len(self._layers))) if self._order is None else self._order


# Places that are kept of a layer whose output many take: in a network with skips each block takes that of all before.
_MOST_TAKERS = 16


def _feeds(pairs: Sequence[tuple[int, int]] | None, order: Sequence[int]) -> tuple[str, ...]:
    """Return for each layer the places of the later layers that take its output, in one text.

    Example:
        >>> _feeds([(0, 1), (0, 2), (2, 1)], [0, 2, 1])
        ('1 2', '2', '')
    """
    if pairs is None:
        return ()
    place = {layer: i for i, layer in enumerate(order)}
    taken: list[list[int]] = [[] for _ in order]
    makers = [0] * len(order)
    for layer, other in sorted({(place[layer], place[other]) for layer, other in pairs}):
        if layer < other:  # a layer that is called several times may take what it has made itself
            taken[layer].append(other)
            makers[other] += 1
    for others in taken:
        for other in others[_MOST_TAKERS // 2 : -_MOST_TAKERS // 2] if len(others) > _MOST_TAKERS else ():
            if makers[other] > 1:
                makers[other] -= 1
                others.remove(other)
    return tuple(" ".join(map(str, places)) for places in taken)


def _no_trace() -> dict[str, Any]:
    return {"trace_step": np.empty(0, np.int64), "trace_loss": np.empty(0), "trace_total_norm": np.empty(0)}
