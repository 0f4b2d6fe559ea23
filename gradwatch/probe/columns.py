"""From numbers by slot to a Snapshot's columns: array arithmetic on the host."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch.probe.graph import Graph
from gradwatch.probe.parameters import NONE, ParameterReading
from gradwatch.records import Array

Columns = dict[str, Any]


def _pick(values: Array, slots: Sequence[int]) -> Array:
    """Numbers by slot; NaN where there is no slot."""
    picked = np.full(len(slots), np.nan)
    index = np.asarray(slots, np.intp)
    picked[index != NONE] = values[index[index != NONE]]
    return picked


def _sums(groups: Sequence[int] | npt.NDArray[np.intp], numbers: Array, length: int) -> Array:
    """Sum of the numbers in each group, NaNs left out; NaN for a group without any."""
    known = ~np.isnan(numbers)
    index = np.asarray(groups, np.intp)[known]
    sums = np.bincount(index, numbers[known], length).astype(np.float64)  # integers where there is none
    sums[np.bincount(index, minlength=length) == 0] = np.nan
    return sums


def _norm(norms: Array) -> float:
    known = norms[~np.isnan(norms)]
    return float(np.linalg.norm(known)) if len(known) else math.nan


def parameter_columns(
    readings: Sequence[ParameterReading], owners: Mapping[str, Sequence[int]], length: int, values: Array
) -> Columns:
    """Columns about parameters.

    Args:
        readings: one for each optimizer that stepped.
        owners: parameter -> indices of the layers that hold it; a shared one is held by several.
        length: number of layers.
        values: numbers by slot.
    """

    def numbers(column: str) -> Array:
        return _pick(values, [slot for reading in readings for slot in getattr(reading, column) or reading.grad_norm])

    names = [name for reading in readings for name in reading.names]
    pairs = [(layer, i) for i, name in enumerate(names) for layer in owners.get(name, ())]
    layers, params = (np.array([pair[side] for pair in pairs], np.intp) for side in (0, 1))
    norms = numbers("grad_norm")
    sizes = np.array([size for reading in readings for size in reading.sizes], np.float64)
    sizes[np.isnan(norms)] = np.nan  # the share of zeros is over the gradients that are there
    return {
        "params": tuple(names),
        "param_grad_norm": norms,
        "total_norm": _norm(norms),
        "total_norm_after": _norm(numbers("grad_norm_after")),
        "grad_norm": np.sqrt(_sums(layers, np.square(norms)[params], length)),
        "weight_norm": np.sqrt(_sums(layers, np.square(numbers("weight_norm"))[params], length)),
        "nonfinite": _sums(layers, numbers("nonfinite")[params], length),
        "zero_fraction": 1 - _sums(layers, numbers("nonzero")[params], length) / _sums(layers, sizes[params], length),
    }


def call_columns(graph: Graph, index: Mapping[str, int], values: Array, scale: float) -> Columns:
    """Columns about the gradients at the layers' outputs and inputs.

    Args:
        graph: what the hooks saw.
        index: layer -> its place in network order.
        values: numbers by slot.
        scale: what the loss was multiplied by.
    """
    length, edges = len(index), len(graph.sizes)
    squares = np.square(values[np.asarray(graph.slots, np.intp)] / scale)
    arrivals = np.asarray(graph.arrivals, np.intp)
    energy = _sums(arrivals, squares, edges)  # NaN at an edge that no gradient came to
    entries = np.bincount(arrivals, minlength=edges) * np.asarray(graph.sizes, np.float64)
    entries[np.isnan(energy)] = np.nan
    layers = np.array([index[layer] for layer in graph.layers], np.intp)
    outgoing, incoming = (np.array(pairs, np.intp).reshape(-1, 2).T for pairs in (graph.outputs, graph.inputs))
    # A call that no gradient came back to is a branch that is not used, or what checkpointing computes twice.
    called = _sums(outgoing[0], energy[outgoing[1]], len(layers))
    incoming = incoming[:, ~np.isnan(called[incoming[0]])]

    def mean_square(pairs: npt.NDArray[np.intp]) -> Array:
        at = layers[pairs[0]]
        return _sums(at, energy[pairs[1]], length) / _sums(at, entries[pairs[1]], length)

    outgoing_mean = mean_square(outgoing)
    healthy = np.where((outgoing_mean > 0) & np.isfinite(outgoing_mean), outgoing_mean, np.nan)
    return {
        "grad_output_norm": np.sqrt(_sums(layers, called, length)),
        "grad_output_rms": np.sqrt(outgoing_mean),
        "gain": np.sqrt(mean_square(incoming) / healthy),
        "calls": _repeated(graph, called, outgoing),
    }


def _repeated(graph: Graph, called: Array, outgoing: npt.NDArray[np.intp]) -> dict[str, Array]:
    """Norm at each call of the layers that were called more than once in the last forward pass, first call first."""
    arrived = np.flatnonzero(~np.isnan(called))
    last = max((graph.passes[call] for call in arrived), default=0)
    by_layer: dict[str, list[int]] = defaultdict(list)
    for call in arrived.tolist():
        if graph.passes[call] == last:
            by_layer[graph.layers[call]].append(call)
    repeated = {layer: calls for layer, calls in by_layer.items() if len(calls) > 1}
    if not repeated:
        return {}
    # The later a call, the sooner its gradient comes. (Checkpointing makes the calls anew, in another order.)
    first_arrival = np.full(len(graph.sizes), len(graph.arrivals))
    np.minimum.at(first_arrival, graph.arrivals, np.arange(len(graph.arrivals)))
    came = np.full(len(called), len(graph.arrivals))
    np.minimum.at(came, outgoing[0], first_arrival[outgoing[1]])
    return {
        layer: np.sqrt(called[sorted(calls, key=came.__getitem__, reverse=True)]) for layer, calls in repeated.items()
    }


def forward_columns(
    norms: Sequence[tuple[int, int, int]], shares: Mapping[str, Sequence[tuple[int, int]]], length: int, values: Array
) -> Columns:
    """Columns about the forward pass.

    Args:
        norms: layer, number of entries and slot of the output's norm, for each call.
        shares: column -> layer and slot, for each call; averaged over the calls.
        length: number of layers.
        values: numbers by slot.
    """
    layers, numels, slots = np.array(norms, np.intp).reshape(-1, 3).T
    entries = _sums(layers, numels.astype(np.float64), length)
    columns = {"output_rms": np.sqrt(_sums(layers, np.square(values[slots]), length) / entries)}
    for column, pairs in shares.items():
        layers, slots = np.array(pairs, np.intp).reshape(-1, 2).T
        columns[column] = _sums(layers, values[slots], length) / _sums(layers, np.ones(len(layers)), length)
    return columns
