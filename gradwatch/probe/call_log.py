"""The log of one measured step's layer calls and gradients, and the sums over it."""

from __future__ import annotations

from collections import UserDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MemberDescriptorType
from typing import Any

import numpy as np
from torch import Tensor

from gradwatch.probe.parameters import NONE
from gradwatch.probe.sum_layout import Indices, Rows, SumLayout
from gradwatch.records import Array


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a module's input or output: a tensor, or tuples, lists, dicts and dataclasses of them.

    Containers are read past what their classes override, so no user code runs. One that holds itself is read once.
    Other containers (a generator, a mapping that computes its values) are skipped.
    """
    found: list[Tensor] = []
    opened: dict[int, Any] = {}  # by id; a container that is held here keeps its id
    waiting = [value]
    while waiting:
        item = waiting.pop()
        # Not isinstance: an object may have a __class__ that lies or raises.
        if issubclass(type(item), Tensor):
            found.append(item)
        elif id(item) not in opened and (parts := _parts(item)):
            opened[id(item)] = item
            waiting += reversed(parts)
    return found


def _parts(container: Any) -> list[Any]:
    kind = type(container)
    if issubclass(kind, tuple):
        return [*tuple.__iter__(container)]
    if issubclass(kind, list):
        return [*list.__iter__(container)]
    if issubclass(kind, dict):
        return [*dict.values(container)]
    if issubclass(kind, UserDict):
        return [_field(container, "data")]
    return [_field(container, name) for name in getattr(kind, "__dataclass_fields__", ())]


def _field(owner: Any, name: str) -> Any:
    """Return an attribute of an object, without running a property; None where it has none."""
    try:
        return dict.get(object.__getattribute__(owner, "__dict__"), name)
    except (AttributeError, TypeError):  # the class has slots
        slot = getattr(type(owner), name, None)
    try:
        return slot.__get__(owner) if isinstance(slot, MemberDescriptorType) else None
    except AttributeError:  # it is not set
        return None


class CallLog:
    """The calls and gradients of one measured step, in flat lists: many small objects would cost more than the hooks.

    An *edge* is the number of a tensor in autograd's graph. A *slot* is the number of a scalar that waits in
    :class:`~gradwatch.probe.scalars.DeviceScalars` to be sent to the host.

    Attributes:
        sizes: entries of each edge.
        arrivals: the edge of each gradient, in the order they came.
        slots: the slot of the norm of each arrival.
        of_loss: for each arrival, if it came in the backward pass of the loss; all False where the loss is not known.
        layers: the layer of each call.
        passes: the forward pass of each call, counted from 0.
        inputs, outputs: pairs of a call and an edge.
        norms: call, entries, and the slot of the norm of its output.
        saturated: place in ``norms``, and the slot of the share of saturated outputs, of a bounded activation.
        peaks: call, largest output of each unit, and number of samples, of a ReLU.
        shares, arrival_shares, norm_shares: weight of each edge, arrival and norm in a sum over all ranks, where ranks
            that share a batch hold copies; empty where none do.
        inputs_given: call, entries, and the slot of the norm, of the floating tensors that the first layer was given.
        dtype: half precision of the last output that had one; empty where none had.
        cut_by_unit: layers of which this process holds only some units.
        unwatched: layers whose hooks failed.
        hooked: layers that have a hook.
        ran: layers that were called, with or without a gradient.
        in_backward: calls that were made in a backward pass, by checkpointing.
        pass_starts: number of gradients that had come when each forward pass but the first began.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.arrivals: list[int] = []
        self.slots: list[int] = []
        self.of_loss: list[bool] = []
        self.layers: list[str] = []
        self.passes: list[int] = []
        self.inputs: list[tuple[int, int]] = []
        self.outputs: list[tuple[int, int]] = []
        self.norms: list[tuple[int, int, int]] = []
        self.saturated: list[tuple[int, int]] = []
        self.peaks: list[tuple[int, Tensor, int]] = []
        self.shares: list[float] = []
        self.arrival_shares: list[float] = []
        self.norm_shares: list[float] = []
        self.inputs_given: list[tuple[int, int, int]] = []
        self.dtype = ""
        self.cut_by_unit: set[str] = set()
        self.unwatched: set[str] = set()
        self.hooked: frozenset[str] = frozenset()
        self.ran: set[str] = set()
        self.in_backward: set[int] = set()
        self.pass_starts: list[int] = []


def _weights(shares: Sequence[float], count: int) -> Array:
    """Return how much each number counts; there are shares only where other processes hold copies of the numbers."""
    return np.asarray(shares, np.float64) if shares else np.ones(count)


class CallSums:
    """Adds up the gradients at the outputs and inputs of calls.

    Args:
        times: layer -> slots of the gradient's norm at each time step, for recurrent networks that are one call.

    Attributes:
        layers: the layer of each call.
        used: for each call, if a gradient came back to it. A call without one is no part of the step: a validation, a
            branch that the loss does not depend on, or a first run of what checkpointing computes twice.
        in_order: layer -> its used calls in the last forward pass, first call first.
    """

    def __init__(self, log: CallLog, index: Mapping[str, int], times: Mapping[str, Sequence[int]]) -> None:
        self._log = log
        self.times = {index[layer]: slots for layer, slots in times.items()}
        self._arrivals = np.asarray(log.arrivals, np.intp)
        if any(log.of_loss):  # else the loss is not known, and all backward passes count
            self._arrivals = np.where(log.of_loss, self._arrivals, NONE)
        self.layers = np.array([index[layer] for layer in log.layers], np.intp)
        self._at_outputs = self._joined_with_arrivals(log.outputs)
        self.used = np.zeros(len(self.layers), bool)
        self.used[self._at_outputs[0]] = True
        self.in_order = self._in_order()

    def _joined_with_arrivals(self, pairs: Sequence[tuple[int, int]]) -> tuple[Indices, Indices]:
        """Return calls and arrivals: each pair of a call and an edge, once for each gradient that came to the edge."""
        # A join of two tables by edge, as a loop over thousands of calls would cost more than the hooks: sort the
        # arrivals by edge, find the run of each pair's edge among them, and list the members of all runs.
        order = np.argsort(self._arrivals, kind="stable")
        calls, edges = np.array(pairs, np.intp).reshape(-1, 2).T
        first, stop = (np.searchsorted(self._arrivals[order], edges, side) for side in ("left", "right"))
        counts = stop - first
        within_run = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(calls, counts), order[np.repeat(first, counts) + within_run]

    def _in_order(self) -> dict[int, list[int]]:
        first_arrival = self._first_arrivals()
        used = np.flatnonzero(self.used)
        # Of accumulated batches the last one: a call of another batch is no earlier time step.
        passes = np.asarray(self._log.passes, np.intp)[used]
        last = used[passes == passes.max(initial=0)]
        by_layer: dict[int, list[int]] = defaultdict(list)
        for call in last[np.argsort(-first_arrival[last], kind="stable")].tolist():
            by_layer[int(self.layers[call])].append(call)
        return by_layer

    def _first_arrivals(self) -> Indices:
        """Return for each call when its first gradient came: the later a call, the sooner.

        The order of the calls won't do where checkpointing makes them in the backward pass, last block first.
        """
        calls, arrivals = self._at_outputs
        first = np.full(len(self.layers), len(self._arrivals))
        np.minimum.at(first, calls, arrivals)
        return first

    @property
    def first_calls(self) -> list[int]:
        """The layers that were called in the passes with a used call, in the order of their first used calls.

        One without a used call (a head that the loss leaves out) has the place of its first call.
        """
        used, passes = np.flatnonzero(self.used), np.asarray(self._log.passes, np.intp)
        if not self._log.in_backward.isdisjoint(used.tolist()):
            used = used[np.lexsort((-self._first_arrivals()[used], passes[used]))]
            return list(dict.fromkeys(self.layers[used].tolist()))
        aside = ~self.used & np.isin(passes, passes[used]) & ~np.isin(self.layers, self.layers[used])
        return list(dict.fromkeys(self.layers[np.sort(np.append(used, np.flatnonzero(aside)))].tolist()))

    def compared(self, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the pairs of layers whose gradients came in the same passes.

        The gradient of a GAN's discriminator is that of its own loss too, of which the generator gets none.
        """
        if not self._log.pass_starts:
            return sorted(pairs)
        calls, arrivals = self._at_outputs
        passes = np.searchsorted(self._log.pass_starts, arrivals, side="right")
        seen: dict[int, set[int]] = defaultdict(set)
        for layer, number in zip(self.layers[calls].tolist(), passes.tolist(), strict=True):
            seen[layer].add(number)
        return sorted(
            pair for pair in pairs if not all(pair_in in seen for pair_in in pair) or seen[pair[0]] == seen[pair[1]]
        )

    def add_to(self, layout: SumLayout, rows: Rows) -> None:
        """Add all to ``layout``; ``rows`` are the places of the calls of layers with several calls."""
        log = self._log
        slots = np.asarray(log.slots, np.intp)
        weights = _weights(log.arrival_shares, len(slots))
        entries = np.asarray(log.sizes, np.float64) * _weights(log.shares, len(log.sizes))
        calls, arrivals = self._at_outputs
        at = self.layers[calls]
        layout.add("energy", at, slots[arrivals], power=2, weight=weights[arrivals])
        layout.count("entries", at, entries[self._arrivals[arrivals]])
        layout.count("arrived", at)
        self._add_calls(layout, rows, slots[arrivals], weights[arrivals])
        calls, arrivals = self._joined_with_arrivals(log.inputs)
        used = self.used[calls]
        at, arrivals = self.layers[calls[used]], arrivals[used]
        layout.add("in_energy", at, slots[arrivals], power=2, weight=weights[arrivals])
        layout.count("in_entries", at, entries[self._arrivals[arrivals]])

    def _add_calls(self, layout: SumLayout, rows: Rows, slots: Indices, weights: Array) -> None:
        places = np.full(len(self.layers), NONE)  # of each call in the field
        for layer, row in rows.items():
            if layer in self.times:
                time_slots = self.times[layer][: row.stop - row.start]
                at = np.arange(row.start, row.start + len(time_slots))
                layout.add("calls", at, time_slots, power=2)
                layout.count("calls_seen", at)
                continue
            calls = self.in_order.get(layer, [])[: row.stop - row.start]
            places[calls] = np.arange(row.start, row.start + len(calls))
        at = places[self._at_outputs[0]]
        kept = at != NONE
        layout.add("calls", at[kept], slots[kept], power=2, weight=weights[kept])
        layout.count("calls_seen", at[kept])


def add_outputs(layout: SumLayout, log: CallLog, calls: CallSums) -> None:
    """Add the outputs of the used calls: their norms, and the shares at which they are flat."""
    of_call, sizes, slots = np.array(log.norms, np.intp).reshape(-1, 3).T
    layers, used = calls.layers[of_call], calls.used[of_call]
    weights = _weights(log.norm_shares, len(layers))
    entries = weights * sizes
    layout.add("out_energy", layers[used], slots[used], power=2, weight=weights[used])
    layout.count("out_entries", layers[used], entries[used])
    bounded, flat = np.array(log.saturated, np.intp).reshape(-1, 2).T
    kept = used[bounded]
    at, amounts = layers[bounded][kept], entries[bounded][kept]
    layout.add("flat_entries", at, flat[kept], weight=amounts)
    layout.count("bounded_entries", at, amounts)


def add_inputs(layout: SumLayout, log: CallLog, calls: CallSums) -> None:
    """Add what the first layer was given in its first used call of each pass."""
    used = [call for call, _, _ in log.inputs_given if calls.used[call]]
    chosen = {*{log.passes[call]: call for call in reversed(used)}.values()}  # the first of each forward pass
    given = [(slot, size) for call, size, slot in log.inputs_given if call in chosen]
    layout.add("input", [0] * len(given), [slot for slot, _ in given], power=2)
    layout.count("inputs", [0] * len(given), [size for _, size in given])


def add_order(layout: SumLayout, calls: CallSums) -> None:
    """Add the places of the layers in the order of their first calls."""
    layers = calls.first_calls
    layout.count("position", layers, list(range(len(layers))))
    layout.count("called", layers)
