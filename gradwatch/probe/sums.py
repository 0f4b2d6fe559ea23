"""What of a step is added up, for each layer, parameter and call: the places of numbers that are not known yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwatch.probe.graph import Graph
from gradwatch.probe.parameters import NONE, ParameterReading
from gradwatch.probe.terms import Indices, Terms
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

    def __init__(self, graph: Graph, index: Index, times: Mapping[str, Sequence[int]]) -> None:
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

    def add_to(self, terms: Terms, rows: Mapping[int, slice]) -> None:
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

    def _add_calls(self, terms: Terms, rows: Mapping[int, slice], slots: Indices, weights: Array) -> None:
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


def add_outputs(terms: Terms, graph: Graph, calls: CallSums, slots: Sequence[int], flat: Sequence[int]) -> None:
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


def add_inputs(terms: Terms, graph: Graph, calls: CallSums, slots: Sequence[int]) -> None:
    """Add what the first layer was given in its first call that counts, in each pass; its norms are in ``slots``."""
    first: dict[int, int] = {}  # forward pass -> call
    for call, _, _ in graph.inputs_given:
        if calls.used[call]:
            first.setdefault(graph.passes[call], call)
    chosen = set(first.values())
    known = [(slot, size) for slot, (call, size, _) in zip(slots, graph.inputs_given, strict=True) if call in chosen]
    terms.add("input", [0] * len(known), [slot for slot, _ in known], power=2)
    terms.count("inputs", [0] * len(known), [size for _, size in known])


def add_order(terms: Terms, calls: CallSums) -> None:
    """Add the places of the layers in the order of their first calls."""
    layers = dict.fromkeys(calls.layers_of_calls[calls.used].tolist())
    terms.count("position", list(layers), list(range(len(layers))))
    terms.count("called", list(layers))


def add_parameters(terms: Terms, reading: ParameterReading, index: Index) -> None:
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
    for field, slots, shares, power in columns:
        slots = np.asarray(slots, np.intp)
        there = slots != NONE
        terms.add(field, at[there], slots[there], power=power, weight=shares[there])


def add_traces(terms: Terms, loss: Trail, total: Trail, since: int) -> None:
    """Add the losses, and the squares of the total norms, of the steps from ``since`` on."""
    for (steps, slots), field, power in ((loss, "loss", 1), (total, "total", 2)):
        at = np.asarray(steps, np.intp) - since
        terms.add(field, at, slots, power=power)
        terms.count("losses" if field == "loss" else "totals", at)
