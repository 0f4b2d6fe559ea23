"""From numbers by slot to a Snapshot's columns: array arithmetic on the host."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradwatch.probe.hooks import Call, Edge
from gradwatch.probe.parameters import ParameterReading
from gradwatch.records import Array

Columns = dict[str, Any]


def _filled(layers: Sequence[str], values: Mapping[str, float]) -> Array:
    return np.array([values.get(layer, math.nan) for layer in layers])


def root_sum_square(values: Iterable[float]) -> float:
    """L2 norm of parts; NaN where there are none."""
    squares = [value * value for value in values]
    return math.sqrt(math.fsum(squares)) if squares else math.nan


def parameter_columns(
    readings: Sequence[ParameterReading], owners: Mapping[str, Sequence[str]], values: Array
) -> Columns:
    """Columns about parameters.

    Args:
        readings: one for each optimizer that stepped.
        owners: layer -> names of its own parameters, in network order.
        values: numbers by slot.
    """
    numbers = values.tolist()
    merged = {
        column: {name: numbers[slot] for reading in readings for name, slot in getattr(reading, column).items()}
        for column in ("grad_norm", "grad_norm_after", "nonzero", "nonfinite", "weight_norm")
    }
    norms = merged["grad_norm"]
    sizes = {name: param.numel() for reading in readings for name, param in reading.params.items()}
    columns: dict[str, dict[str, float]] = defaultdict(dict)
    for layer, names in owners.items():
        learning = [name for name in names if name in sizes]
        if learning:
            columns["weight_norm"][layer] = root_sum_square(merged["weight_norm"][name] for name in learning)
        present = [name for name in learning if name in norms]
        if present:
            columns["grad_norm"][layer] = root_sum_square(norms[name] for name in present)
            columns["nonfinite"][layer] = sum(merged["nonfinite"][name] for name in present)
            entries = max(sum(sizes[name] for name in present), 1)
            columns["zero_fraction"][layer] = 1 - sum(merged["nonzero"][name] for name in present) / entries
    return {column: _filled(list(owners), filled) for column, filled in columns.items()} | {
        "params": tuple(sizes),
        "param_grad_norm": np.array([norms.get(name, math.nan) for name in sizes]),
        "total_norm": root_sum_square(norms.values()),
        "total_norm_after": root_sum_square(merged["grad_norm_after"].values()),
    }


def call_columns(calls: Sequence[Call], layers: Sequence[str], values: Array, scale: float) -> Columns:
    """Columns about the gradients at the layers' outputs and inputs, divided by the loss ``scale``."""
    squares = np.square(values / scale).tolist()
    outgoing: dict[str, list[tuple[float, int]]] = defaultdict(list)
    incoming: dict[str, list[tuple[float, int]]] = defaultdict(list)
    sequence: dict[str, list[tuple[int, float]]] = defaultdict(list)
    last_pass = max((call.forward_pass for call in calls if _arrived(call)), default=0)
    for call in calls:
        if not _arrived(call):  # nothing came back: a branch that is not used, or what checkpointing computes twice
            continue
        square, numel = _energy(call.outputs, squares)
        outgoing[call.layer].append((square, numel))
        if any(edge.slots for edge in call.inputs):
            incoming[call.layer].append(_energy(call.inputs, squares))
        if call.forward_pass == last_pass:
            sequence[call.layer].append((-max(edge.arrival for edge in call.outputs), math.sqrt(square)))
    norm = {layer: math.sqrt(math.fsum(square for square, _ in parts)) for layer, parts in outgoing.items()}
    rms = {layer: _rms(parts) for layer, parts in outgoing.items()}
    gain = {layer: _rms(parts) / rms[layer] for layer, parts in incoming.items() if 0 < rms[layer] < math.inf}
    return {
        "grad_output_norm": _filled(layers, norm),
        "grad_output_rms": _filled(layers, rms),
        "gain": _filled(layers, gain),
        "calls": {
            layer: np.array([norm for _, norm in sorted(parts)]) for layer, parts in sequence.items() if len(parts) > 1
        },
    }


def _arrived(call: Call) -> bool:
    return any(edge.slots for edge in call.outputs)


def _energy(edges: Iterable[Edge], squares: Sequence[float]) -> tuple[float, int]:
    """Sum of squares of the gradients that came, and of how many entries."""
    parts = [(squares[slot], edge.numel) for edge in edges for slot in edge.slots]
    return math.fsum(square for square, _ in parts), sum(numel for _, numel in parts)


def _rms(parts: Sequence[tuple[float, int]]) -> float:
    return math.sqrt(math.fsum(square for square, _ in parts) / max(sum(numel for _, numel in parts), 1))


def forward_columns(
    forward: Sequence[tuple[str, int, int]],
    shares: Mapping[str, Sequence[tuple[str, int]]],
    layers: Sequence[str],
    values: Array,
) -> Columns:
    """Columns about the forward pass.

    Args:
        forward: layer, number of entries and slot of the norm, for each call.
        shares: column -> layer and slot, for each call; averaged over the calls.
        layers: names in network order.
        values: numbers by slot.
    """
    energy: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for layer, numel, slot in forward:
        energy[layer].append((values[slot] ** 2, numel))
    columns = {"output_rms": _filled(layers, {layer: _rms(parts) for layer, parts in energy.items()})}
    for column, pairs in shares.items():
        seen: dict[str, list[float]] = defaultdict(list)
        for layer, slot in pairs:
            seen[layer].append(float(values[slot]))
        columns[column] = _filled(layers, {layer: sum(parts) / len(parts) for layer, parts in seen.items()})
    return columns
