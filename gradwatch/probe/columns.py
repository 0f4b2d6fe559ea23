"""From numbers by slot to a Snapshot's columns: array arithmetic on the host."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwatch.probe.hooks import Call, Edge
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


class _Energy:
    """Gradients by layer: their sums of squares and numbers of entries."""

    def __init__(self) -> None:
        self._layers: list[int] = []
        self._slots: list[int] = []
        self._numels: list[int] = []

    def add(self, layer: int, edges: Iterable[Edge]) -> None:
        for edge in edges:
            for slot in edge.slots:
                self._layers.append(layer)
                self._slots.append(slot)
                self._numels.append(edge.numel)

    def square(self, squares: Array, length: int) -> Array:
        return _sums(self._layers, squares[self._slots], length) if self._slots else np.full(length, np.nan)

    def mean_square(self, squares: Array, length: int) -> Array:
        return self.square(squares, length) / _sums(self._layers, np.array(self._numels, np.float64), length)


def call_columns(calls: Sequence[Call], index: Mapping[str, int], values: Array, scale: float) -> Columns:
    """Columns about the gradients at the layers' outputs and inputs.

    Args:
        calls: what the hooks saw.
        index: layer -> its place in network order.
        values: numbers by slot.
        scale: what the loss was multiplied by.
    """
    # A call that no gradient came back to is a branch that is not used, or what checkpointing computes twice.
    arrived = [call for call in calls if call.outputs[0].slots or any(edge.slots for edge in call.outputs)]
    outgoing, incoming = _Energy(), _Energy()
    for call in arrived:
        outgoing.add(index[call.layer], call.outputs)
        incoming.add(index[call.layer], call.inputs)
    squares, length = np.square(values / scale), len(index)
    mean_square = outgoing.mean_square(squares, length)
    healthy = np.where((mean_square > 0) & np.isfinite(mean_square), mean_square, np.nan)
    return {
        "grad_output_norm": np.sqrt(outgoing.square(squares, length)),
        "grad_output_rms": np.sqrt(mean_square),
        "gain": np.sqrt(incoming.mean_square(squares, length) / healthy),
        "calls": _repeated(arrived, squares),
    }


def _repeated(calls: Sequence[Call], squares: Array) -> dict[str, Array]:
    """Norm at each call of the layers that were called more than once in the last forward pass, first call first."""
    by_layer: dict[str, list[Call]] = defaultdict(list)
    last = max((call.forward_pass for call in calls), default=0)
    for call in calls:
        if call.forward_pass == last:
            by_layer[call.layer].append(call)
    return {layer: _over_time(repeated, squares) for layer, repeated in by_layer.items() if len(repeated) > 1}


def _over_time(calls: Sequence[Call], squares: Array) -> Array:
    # The later a call, the sooner its gradient comes. (Recomputed calls are made in another order.)
    slots = [[slot for edge in call.outputs for slot in edge.slots] for call in calls]
    return np.array([math.sqrt(squares[call].sum()) for call in sorted(slots, key=min, reverse=True)])


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
