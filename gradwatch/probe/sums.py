"""What of a step is added up, for each layer, parameter and call: the places of numbers that are not known yet."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gradwatch.containment import OutOfService
from gradwatch.probe.call_log import CallLog
from gradwatch.probe.columns import Columns, call_column, layer_columns, parameter_columns, trace_columns
from gradwatch.probe.layers import Model
from gradwatch.probe.parameters import NONE, ParameterReading
from gradwatch.probe.reduction import AllRanks, SingleProcess
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import Indices, SumLayout, rows_of
from gradwatch.records import Array

LAYER_SUMS = (
    "energy", "entries", "arrived",  # of the gradients at the outputs: squares, entries, how many there were
    "in_energy", "in_entries",  # of those at the inputs
    "out_energy", "out_entries",  # of the outputs
    "flat_entries", "bounded_entries",  # of bounded activations' outputs: those where it is flat, all
    "dead", "looked_at", "samples",  # of ReLUs
    "position", "called",  # places in the order of first calls
    "unwatched",  # processes in which the layer's hook failed
)  # fmt: skip
Index = Mapping[str, int]  # layer or parameter -> its place
Trail = tuple[Sequence[int], Sequence[int]]  # steps, and where their numbers wait
PARAMETER_SUMS = ("read", "present", "size", "grad", "after", "nonzero", "nonfinite", "weight")
TRACE_SUMS = ("loss", "losses", "total", "totals")
STEP_SUMS = ("scale", "scaled", "skipped", "short", "input", "inputs", "failed")


def _weights(shares: Sequence[float], numbers: int) -> Array:
    """How much each counts; all alike where nobody else holds copies of them."""
    return np.asarray(shares, np.float64) if shares else np.ones(numbers)


class CallSums:
    """Adds up the gradients at the outputs and inputs of calls.

    Args:
        graph: what the hooks saw.
        index: layer -> its place.
        times: layer -> the slots of the gradient's norms at each time step, of such as hide these from hooks.
    """

    def __init__(self, graph: CallLog, index: Index, times: Mapping[str, Sequence[int]]) -> None:
        self._graph = graph
        self.times = {index[layer]: slots for layer, slots in times.items()}
        self._arrivals = np.asarray(graph.arrivals, np.intp)
        if any(graph.of_loss):  # else nobody has told of the loss
            self._arrivals = np.where(graph.of_loss, self._arrivals, NONE)
        self._layers = np.array([index[layer] for layer in graph.layers], np.intp)
        self._came = self._arrived(graph.outputs)
        self.layers_of_calls = self._layers
        self.used = np.zeros(len(self._layers), bool)
        """For each call, whether a gradient came back to it. A call that none came to is a validation, a branch that
        the loss does not depend on, or what checkpointing computes twice: it is no part of the step."""
        self.used[self._came[0]] = True
        self.in_order = self._in_order()
        """Layer -> its calls that a gradient came back to, in the last forward pass, first call first."""

    def _arrived(self, pairs: Sequence[tuple[int, int]]) -> tuple[Indices, Indices]:
        """Calls and arrivals: each pair of a call and an edge, once for each gradient that came to the edge."""
        order = np.argsort(self._arrivals, kind="stable")
        calls, edges = np.array(pairs, np.intp).reshape(-1, 2).T
        first, stop = (np.searchsorted(self._arrivals[order], edges, side) for side in ("left", "right"))
        counts = stop - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(calls, counts), order[np.repeat(first, counts) + within]

    def _in_order(self) -> dict[int, list[int]]:
        calls, came = self._came
        # The later a call, the sooner its gradient comes. (Checkpointing makes the calls anew, in another order.)
        first = np.full(len(self._layers), len(self._arrivals))
        np.minimum.at(first, calls, came)
        arrived = np.unique(calls)
        passes = np.asarray(self._graph.passes, np.intp)[arrived]
        last = arrived[passes == passes.max(initial=0)]
        by_layer: dict[int, list[int]] = defaultdict(list)
        for call in last[np.argsort(-first[last], kind="stable")].tolist():
            by_layer[int(self._layers[call])].append(call)
        return by_layer

    def add_to(self, terms: SumLayout, rows: Mapping[int, slice]) -> None:
        """Add all to ``terms``; ``rows`` are the places of the calls of such layers as are called repeatedly."""
        graph = self._graph
        slots = np.asarray(graph.slots, np.intp)
        heard = _weights(graph.arrival_shares, len(slots))
        entries = np.asarray(graph.sizes, np.float64) * _weights(graph.shares, len(graph.sizes))
        calls, came = self._came
        at = self._layers[calls]
        terms.add("energy", at, slots[came], power=2, weight=heard[came])
        terms.count("entries", at, entries[self._arrivals[came]])
        terms.count("arrived", at)
        self._add_calls(terms, rows, slots[came], heard[came])
        inward, came_in = self._arrived(graph.inputs)
        used = self.used[inward]
        at, came = self._layers[inward[used]], came_in[used]
        terms.add("in_energy", at, slots[came], power=2, weight=heard[came])
        terms.count("in_entries", at, entries[self._arrivals[came]])

    def _add_calls(self, terms: SumLayout, rows: Mapping[int, slice], slots: Indices, weights: Array) -> None:
        places = np.full(len(self._layers), NONE)
        for layer, row in rows.items():
            if layer in self.times:
                slots_over_time = self.times[layer][: row.stop - row.start]
                at = np.arange(row.start, row.start + len(slots_over_time))
                terms.add("calls", at, slots_over_time, power=2)
                terms.count("calls_seen", at)
                continue
            calls = self.in_order.get(layer, [])[: row.stop - row.start]
            places[calls] = np.arange(row.start, row.start + len(calls))
        at = places[self._came[0]]
        kept = at != NONE
        terms.add("calls", at[kept], slots[kept], power=2, weight=weights[kept])
        terms.count("calls_seen", at[kept])


def add_outputs(terms: SumLayout, graph: CallLog, calls: CallSums, slots: Sequence[int], flat: Sequence[int]) -> None:
    """Add the outputs of the calls that count: their norms in ``slots``, the shares where they are flat in ``flat``."""
    of_call = np.array([call for call, _, _ in graph.norms], np.intp)
    layers, used = calls.layers_of_calls[of_call], calls.used[of_call]
    weights = _weights(graph.norm_shares, len(layers))
    entries = weights * np.array([size for _, size, _ in graph.norms], np.float64)
    terms.add("out_energy", layers[used], np.asarray(slots, np.intp)[used], power=2, weight=weights[used])
    terms.count("out_entries", layers[used], entries[used])
    bounded = np.array([place for place, _ in graph.saturated], np.intp)
    kept = used[bounded]
    at, amounts = layers[bounded][kept], entries[bounded][kept]
    terms.add("flat_entries", at, np.asarray(flat, np.intp)[kept], weight=amounts)
    terms.count("bounded_entries", at, amounts)


def add_inputs(terms: SumLayout, graph: CallLog, calls: CallSums, slots: Sequence[int]) -> None:
    """Add what the first layer was given in its first call that counts, in each pass; its norms are in ``slots``."""
    first: dict[int, int] = {}  # forward pass -> call
    for call, _, _ in graph.inputs_given:
        if calls.used[call]:
            first.setdefault(graph.passes[call], call)
    chosen = set(first.values())
    known = [(slot, size) for slot, (call, size, _) in zip(slots, graph.inputs_given, strict=True) if call in chosen]
    terms.add("input", [0] * len(known), [slot for slot, _ in known], power=2)
    terms.count("inputs", [0] * len(known), [size for _, size in known])


def add_order(terms: SumLayout, calls: CallSums) -> None:
    """Add the places of the layers in the order of their first calls."""
    layers = dict.fromkeys(calls.layers_of_calls[calls.used].tolist())
    terms.count("position", list(layers), list(range(len(layers))))
    terms.count("called", list(layers))


def add_parameters(terms: SumLayout, reading: ParameterReading, index: Index) -> None:
    """Add what was read of an optimizer's parameters; ``index``: parameter -> its place."""
    at = np.array([index[name] for name in reading.names], np.intp)
    held, heard = (np.asarray(shares) for shares in (reading.shares, reading.grad_shares))
    norms = np.asarray(reading.grad_norm, np.intp)
    there = norms != NONE
    terms.count("read", at)
    terms.count("present", at[there])
    terms.count("size", at[there], (np.asarray(reading.sizes, np.float64) * held)[there])
    after = norms if reading.grad_norm_after is None else np.asarray(reading.grad_norm_after, np.intp)
    columns: tuple[tuple[str, Any, Array, int], ...] = (
        ("grad", norms, heard, 2), ("after", after, heard, 2), ("weight", reading.weight_norm, held, 2),
        ("nonzero", reading.nonzero, heard, 1), ("nonfinite", reading.nonfinite, heard, 1),
    )  # fmt: skip
    for name, slots, shares, power in columns:
        slots = np.asarray(slots, np.intp)
        there = slots != NONE
        terms.add(name, at[there], slots[there], power=power, weight=shares[there])


def add_traces(terms: SumLayout, loss: Trail, total: Trail, since: int) -> None:
    """Add the losses, and the squares of the total norms, of the steps from ``since`` on."""
    for (steps, slots), name, power in ((loss, "loss", 1), (total, "total", 2)):
        at = np.asarray(steps, np.intp) - since
        terms.add(name, at, slots, power=power)
        terms.count("losses" if name == "loss" else "totals", at)


_MOST_PARTS = 64  # of the watching, that processes tell each other of: as many in all, whatever detectors they have


@dataclass(frozen=True)
class Seen:
    """What is known of a step on the host, and in ``scalars`` on the device."""

    graph: CallLog
    scalars: DeviceScalars
    readings: Sequence[ParameterReading]
    times: Mapping[str, range]  # layer -> the gradient's norms over its time steps
    span: range
    loss: Trail
    total: Trail
    loss_scale: Tensor | None
    skipped: bool | Tensor
    faults: Mapping[int, OutOfService] = field(default_factory=dict)  # place -> a shared part that failed here
    has_failed: bool = False  # the reading failed in this process: there is nothing but the place of the step

    def without_numbers(self) -> Seen:
        """Return what a process whose reading failed adds to the sums of all."""
        return Seen(CallLog(), DeviceScalars(), (), {}, self.span, ([], []), ([], []), None, False, self.faults, True)


class StepSums:
    """The sums of one step.

    Args:
        model: what is watched.
        seen: what was seen.
        group: adds up the sums, of this process alone or of several.

    Attributes:
        scalars: what the sums wait for on the device.
        failed: some process had nothing to add. This and the next two are known once the columns are made.
        unwatched: the layers whose hooks failed in some process.
        faults: places of the shared parts of the watching that failed in some process, at which step, and the
            checksums of their names.
    """

    def __init__(self, model: Model, seen: Seen, group: SingleProcess | AllRanks) -> None:
        self._model, self._span, self._dtype = model, seen.span, seen.graph.dtype
        self.scalars, self.failed = seen.scalars, False
        self.unwatched: list[str] = []
        self.faults: dict[int, tuple[int, int]] = {}
        calls = CallSums(seen.graph, model.layers, seen.times)
        group.see([(seen.graph.layers[i], peak, n) for i, peak, n in seen.graph.peaks if calls.used[i]])
        wanted = self._wanted(calls, group.unit_counts(model.layers))
        room = group.room(wanted.reshape(-1)).reshape(wanted.shape)
        self._calls, call_count = rows_of(room[0].tolist())
        self._units, unit_count = rows_of(room[1].tolist())
        terms = SumLayout(self._lengths(call_count, unit_count))
        calls.add_to(terms, self._calls)
        group.add_activity(terms, seen.scalars, model.layers, self._units, seen.graph)
        _fill(terms, seen, model, calls)
        self._group, self._read = group, group.add_up(terms, seen.scalars, wanted.reshape(-1))

    def _wanted(self, calls: CallSums, units: Mapping[int, int]) -> Indices:
        """Sums for each layer's calls, where it has several, and for its units."""
        wanted = np.zeros((2, len(self._model.layers)), np.intp)
        for layer, several in calls.in_order.items():
            wanted[0, layer] = len(several) if len(several) > 1 else 0
        for layer, slots in calls.times.items():
            wanted[0, layer] = len(slots)
        wanted[1, list(units)] = list(units.values())
        return wanted

    def _lengths(self, calls: int, units: int) -> dict[str, int]:
        return {
            **dict.fromkeys(LAYER_SUMS, len(self._model.layers)),
            **dict.fromkeys(PARAMETER_SUMS, len(self._model.params)),
            **dict.fromkeys(TRACE_SUMS, len(self._span)),
            **dict.fromkeys(STEP_SUMS, 1),
            **dict.fromkeys(("faults", "fault_steps", "fault_names"), _MOST_PARTS),
            **dict.fromkeys(("calls", "calls_seen"), calls),
            **dict.fromkeys(("units", "fired"), units),
        }

    def columns(self, values: Array) -> Columns:
        """What a Snapshot holds, by place: of layers, of parameters and of steps.

        Args:
            values: the numbers of ``scalars``, on the host.
        """
        sums, layers, params = self._read(values), self._model.layers, self._model.params
        self.failed = bool(sums["failed"][0])
        self.unwatched = [name for name, place in layers.items() if sums["unwatched"][place]]
        for place in np.flatnonzero(sums["faults"]).tolist():
            step, name = (int(sums[field][place] / sums["faults"][place]) for field in ("fault_steps", "fault_names"))
            self.faults[place] = step, name
        scale = self._group.batches * (sums["scale"][0] / sums["scaled"][0] if sums["scaled"][0] else 1.0)
        return {
            **parameter_columns(sums, list(params), self._model.owners, len(layers)),
            **_watched(layer_columns(sums, scale), sums["unwatched"]),
            **trace_columns(sums, self._span.start),
            "dead_fraction": self._group.dead_fraction(sums, self._units),
            "calls": call_column(sums, self._calls, scale),
            "skipped": bool(sums["skipped"][0]),
            "weight_gain": self._model.weights.gains(sums["weight"], len(layers)),
            "input_rms": float(np.sqrt(sums["input"][0] / sums["inputs"][0])) if sums["inputs"][0] else np.nan,
            "loss_scale": float(sums["scale"][0] / sums["scaled"][0]) if sums["scaled"][0] else np.nan,
            "dtype": self._dtype,
            "first_calls": {
                layer: sums["position"][i] / sums["called"][i] for layer, i in layers.items() if sums["called"][i]
            },
        }


def checksum(name: str) -> int:
    """Return a number by which processes know that they mean the same part.

    Example:
        >>> checksum("detector 0 Vanishing") == checksum("detector 0 Vanishing")
        True
    """
    return zlib.crc32(name.encode())


def _watched(columns: Columns, failed: Array) -> Columns:
    """Return the columns without the layers whose hook failed in some process: the others saw only a part."""
    return {name: np.where(failed > 0, np.nan, column) for name, column in columns.items()}


def _fill(terms: SumLayout, seen: Seen, model: Model, calls: CallSums) -> None:
    graph, scalars = seen.graph, seen.scalars
    norms = scalars.many([norm for _, _, norm in graph.norms])
    flat = scalars.many([share for _, share in graph.saturated])
    add_outputs(terms, graph, calls, norms, flat)
    add_inputs(terms, graph, calls, scalars.many([norm for _, _, norm in graph.inputs_given]))
    add_order(terms, calls)
    for reading in seen.readings:
        add_parameters(terms, reading, model.params)
    add_traces(terms, seen.loss, seen.total, seen.span.start)
    terms.count("unwatched", [model.layers[name] for name in graph.unwatched if name in model.layers])
    terms.count("failed", [0], float(seen.has_failed))
    for place, failure in seen.faults.items():
        if place < _MOST_PARTS:
            terms.count("faults", [place])
            terms.count("fault_steps", [place], [failure.step])
            terms.count("fault_names", [place], [checksum(failure.part)])
    if seen.loss_scale is not None:
        terms.add("scale", [0], scalars.many([seen.loss_scale]))
        terms.count("scaled", [0])
    if isinstance(seen.skipped, Tensor):
        terms.add("skipped", [0], scalars.many([seen.skipped]))
    else:
        terms.count("skipped", [0], float(seen.skipped))
