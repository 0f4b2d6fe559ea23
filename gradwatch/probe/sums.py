"""The sums of a step: which numbers of hooks and parameters are added into which cell.

An example: three layers of one unit, ``c(b(b(a(x))))``, where ``b`` is called twice and ``a`` and ``c`` share their
weight. With ``x = 1``, weights of 2 and 3, and the last output as the loss:

    call (layer)          0 (a)    1 (b)    2 (b)    3 (c)
    output                  2        6       18       36       edges 0, 1, 2, 3: the tensors that carry a gradient
    gradient there         18        6        2        1       arrivals [3, 2, 1, 0]: the last call's comes first

A call's output is the next call's input, so edge 1 is an output of call 1 and an input of call 2. ``x`` is data, which
gets no gradient. Each number below is a cell of the row; a cell of squares holds a sum of squared norms:

    field          a      b             c
    energy         324    36 + 4 = 40   1       gradients at the outputs, squared
    arrived        1      2             1       how many there were
    entries        1      2             1       entries of these
    in_energy      0      324 + 36      4       gradients at the inputs; a has none
    out_energy     4      36 + 324      1296    outputs
    position       0      1             2       order of the first calls
    calls          -      36, 4         -       only for layers with several calls: one cell for each, first call first

    field          a.weight             b.weight
    grad           (18 + 18)^2 = 1296   (12 + 12)^2 = 576
    weight         4                    9

The shared weight has one cell, under its first name, and counts once in the total norm, sqrt(1296 + 576). Both ``a``
and ``c`` own it, so it counts in the ``grad_norm`` of each. With ``b``'s gain, sqrt(360 / 40) = 3, the sums have become
columns of the Snapshot, which is the work of ``columns.py``.

Sums, and not norms or means, since sums can be added over calls, batches and processes: one collective does it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gradwatch.containment import OutOfService
from gradwatch.probe.call_log import CallLog, CallSums, add_inputs, add_order, add_outputs
from gradwatch.probe.columns import Columns, call_column, chance_of, layer_columns, parameter_columns, trace_columns
from gradwatch.probe.constant_prediction import CONSTANT_SUMS
from gradwatch.probe.dead_units import Peaks, UnitActivity, add_units, peaks_by_layer
from gradwatch.probe.layer_graph import Pairs
from gradwatch.probe.loss_graph import LossEnd
from gradwatch.probe.parameters import NONE, ParameterReading
from gradwatch.probe.reduction import AllRanks, SingleProcess
from gradwatch.probe.replicas import Term, add_replicas
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import Indices, Rows, SumLayout, rows_of
from gradwatch.probe.trace import StepSlots
from gradwatch.probe.updates import UPDATE_SUMS, Updates, add_updates
from gradwatch.probe.watched_model import ModelIndex
from gradwatch.records import Array

LAYER_SUMS = (
    "energy", "entries", "arrived",  # gradients at the outputs: squares, entries, how many there were
    "in_energy", "in_entries",  # gradients at the inputs
    "out_energy", "out_entries",  # outputs
    "flat_entries", "bounded_entries",  # outputs of bounded activations: where these are flat, all
    "samples",  # of ReLUs
    "position", "called",  # places in the order of first calls, processes in which the layer was called
    "unwatched",  # processes in which the layer's hook failed
    "hooked", "ran",  # processes in which the layer has a hook, and in which it was called
)  # fmt: skip
PARAMETER_SUMS = (
    *UPDATE_SUMS, "left_out", "read", "held", "present", "size", "grad", "after", "nonzero", "nonfinite", "weight",
    "carried", "zeros",  # processes in which the gradient was added to, and passes before which it was all zero
)  # fmt: skip
CLIP_SUMS = {"norm": "late_clips", "before backward": "early_clips", "no gradients": "empty_clips"}
TRACE_SUMS = ("loss", "losses", "total", "totals")
STEP_SUMS = (
    "scale", "scaled", "skipped", "short", "input", "inputs", "failed", "learns", "processes",
    "graph",  # checksums of the processes' graphs of layers
    "clipped", "clips",  # total norm before a clip that came before the reading, processes that know it
    *CLIP_SUMS.values(),  # processes that saw such a clip
    "broadcast", "classes", "classed",  # processes whose loss broadcasts, classes of losses, losses that have some
    *CONSTANT_SUMS, "constants",  # numbers of a constant prediction, processes that have them
)  # fmt: skip
Index = Mapping[str, int]  # layer or parameter -> its place

# Parts of the watching whose failures processes share. A fixed number, since the layout must be the same whatever
# detectors a process has.
_MOST_PARTS = 64


def add_parameters(layout: SumLayout, reading: ParameterReading, index: Index) -> None:
    """Add what was read of an optimizer's parameters; ``index``: parameter -> its place."""
    at = np.array([index[name] for name in reading.names], np.intp)
    of_param, of_grad = (np.asarray(shares) for shares in (reading.shares, reading.grad_shares))
    norms = np.asarray(reading.grad_norm, np.intp)
    has_grad = norms != NONE
    layout.count("read", at)
    layout.count("present", at[has_grad])
    sizes = np.asarray(reading.sizes, np.float64) * of_param
    layout.count("held", at, sizes)
    layout.count("size", at[has_grad], sizes[has_grad])
    for name, zeros in reading.carried.items():
        layout.count("carried", [index[name]])
        layout.add("zeros", [index[name]] * len(zeros), zeros)
    after = norms if reading.grad_norm_after is None else np.asarray(reading.grad_norm_after, np.intp)
    columns: tuple[tuple[str, Any, Array, int], ...] = (
        ("grad", norms, of_grad, 2), ("after", after, of_grad, 2), ("weight", reading.weight_norm, of_param, 2),
        ("nonzero", reading.nonzero, of_grad, 1), ("nonfinite", reading.nonfinite, of_grad, 1),
    )  # fmt: skip
    for name, slots, shares, power in columns:
        slots = np.asarray(slots, np.intp)
        known = slots != NONE
        layout.add(name, at[known], slots[known], power=power, weight=shares[known])


def add_trace(layout: SumLayout, loss: StepSlots, total: StepSlots, since: int) -> None:
    """Add the losses, and the squares of the total norms, of the steps from ``since`` on."""
    for (steps, slots), name, count, power in ((loss, "loss", "losses", 1), (total, "total", "totals", 2)):
        at = np.asarray(steps, np.intp) - since
        layout.add(name, at, slots, power=power)
        layout.count(count, at)


@dataclass(frozen=True)
class StepReading:
    """All that was read of a step: on the host, and in ``scalars`` on the device.

    Attributes:
        log: calls and gradients.
        scalars: the numbers on the device.
        parameters: what was read of each optimizer's parameters.
        updates: what the step changed in the parameters.
        times: layer -> slots of the gradient's norm at each time step.
        span: the steps since the last Snapshot, this one included.
        loss, total: the losses and total norms of these steps.
        loss_scale: what the loss was multiplied by; None where it was not.
        skipped: the optimizer did not step; a scalar that is not 0 where only the device knows.
        should_learn: the step was meant to change weights.
        left_out: parameters that belong to no optimizer, as far as this process has a gradient for them.
        clip: case and bound of the step's clip, and the total norm that it found, where that was not read before it.
        faults: place -> a shared part that failed in this process.
        replicas: what the checksums of the tensors add.
        end: of the graph of the loss.
        constant: what tells the loss of a constant prediction; None where nothing was read.
        pairs: of a layer, and one that takes its output; None where these are not known.
        has_failed: the reading failed in this process: nothing but ``span`` and ``faults`` is known.
        has_zeros: the zeros in the gradients are counted, in all processes.
    """

    log: CallLog
    scalars: DeviceScalars
    parameters: Sequence[ParameterReading]
    updates: Updates
    times: Mapping[str, range]
    span: range
    loss: StepSlots
    total: StepSlots
    loss_scale: Tensor | None
    skipped: bool | Tensor
    should_learn: bool = False
    left_out: Sequence[str] = ()
    clip: tuple[str, float, Tensor | None] = ("", np.nan, None)
    faults: Mapping[int, OutOfService] = field(default_factory=dict)
    replicas: Sequence[Term] = ()
    pairs: Pairs | None = None
    end: LossEnd = LossEnd()
    constant: Tensor | None = None
    has_failed: bool = False
    has_zeros: bool = True

    def without_numbers(self) -> StepReading:
        """Return what a process whose reading failed adds to the sums of all."""
        nothing: StepSlots = ([], [])
        numbers = (self.span, nothing, nothing, None, False)
        return StepReading(
            CallLog(), DeviceScalars(), (), Updates(), {}, *numbers, faults=self.faults, has_failed=True,
            has_zeros=self.has_zeros,
        )  # fmt: skip


class StepSums:
    """The sums of one step.

    Attributes:
        scalars: the numbers on the device that the sums are made of.
        failed: some process had nothing to add. This and the next two are known once :meth:`columns` was called.
        unwatched: the layers whose hooks failed in some process.
        faults: place of each shared part that failed in some process -> the step, and the checksum of its name.
    """

    def __init__(
        self, index: ModelIndex, reading: StepReading, group: SingleProcess | AllRanks, activity: UnitActivity
    ) -> None:
        self._index, self._span, self._dtype = index, reading.span, reading.log.dtype
        self._broadcast = reading.end.broadcast
        self._group, self._activity, self._replicas = group, activity, group.replicas
        self.scalars, self.failed = reading.scalars, False
        self._has_zeros = reading.has_zeros
        self.unwatched: list[str] = []
        self.faults: dict[int, tuple[int, int]] = {}
        calls = CallSums(reading.log, index.layers, reading.times)
        used_peaks = ((int(calls.layers[i]), peak, n) for i, peak, n in reading.log.peaks if calls.used[i])
        peaks = peaks_by_layer(used_peaks)
        # First the lengths, which the processes may have to agree on, then the layout, then the terms.
        wanted = self._wanted(calls, peaks)
        room = group.room(wanted.reshape(-1)).reshape(wanted.shape)
        self._calls, call_count = rows_of(room[0].tolist())
        self._units, unit_count = rows_of(room[1].tolist())
        layout = SumLayout(self._lengths(call_count, unit_count))
        self._pairs = _compared(reading.pairs, index.layers, calls)
        self._graph = checksum(repr(self._pairs))
        layout.count("graph", [0], [float(self._graph)])
        calls.add_to(layout, self._calls)
        add_units(layout, peaks, self._held_units(reading.log), reading.scalars)
        _add_rest(layout, reading, index, calls)
        add_replicas(layout, reading.replicas)
        self._sums_of = group.add_up(layout, reading.scalars, wanted.reshape(-1))

    def _wanted(self, calls: CallSums, peaks: Peaks) -> Indices:
        """Return how many cells each layer needs for its calls, where it has several, and for its units."""
        wanted = np.zeros((2, len(self._index.layers)), np.intp)
        for layer, several in calls.in_order.items():
            wanted[0, layer] = len(several) if len(several) > 1 else 0
        for layer, slots in calls.times.items():
            wanted[0, layer] = len(slots)
        for layer, (peak, _) in peaks.items():
            wanted[1, layer] = len(peak) * self._group.sharing
        return wanted

    def _held_units(self, log: CallLog) -> Rows:
        """Return the cells of the units that this process holds.

        Processes that share a batch hold different units where a layer is cut by unit: each has a part of the row. Else
        they hold the same units, and all of them add to its first part.
        """
        if self._group.sharing == 1:
            return self._units
        cut = {self._index.layers[layer] for layer in log.cut_by_unit}
        held = {}
        for layer, row in self._units.items():
            room = (row.stop - row.start) // self._group.sharing
            start = row.start + (self._group.place * room if layer in cut else 0)
            held[layer] = slice(start, start + room)
        return held

    def _lengths(self, calls: int, units: int) -> dict[str, int]:
        return {
            **dict.fromkeys(LAYER_SUMS, len(self._index.layers)),
            **dict.fromkeys(PARAMETER_SUMS, len(self._index.params)),
            **dict.fromkeys(TRACE_SUMS, len(self._span)),
            **dict.fromkeys(STEP_SUMS, 1),
            **self._replicas.lengths,
            **dict.fromkeys(("faults", "fault_steps", "fault_names"), _MOST_PARTS),
            **dict.fromkeys(("calls", "calls_seen"), calls),
            **dict.fromkeys(("units", "fired"), units),
        }

    def columns(self, values: Array) -> Columns:
        """Return the columns of a Snapshot by place (of layer, parameter or step), from the numbers of ``scalars``."""
        sums, layers, params = self._sums_of(values), self._index.layers, self._index.params
        self.failed = bool(sums["failed"][0])
        self.unwatched = [name for name, place in layers.items() if sums["unwatched"][place]]
        for place in np.flatnonzero(sums["faults"]).tolist():
            # Divided by how many processes added them. Where these mean different parts, the checksum is of none.
            step, name = (int(sums[field][place] / sums["faults"][place]) for field in ("fault_steps", "fault_names"))
            self.faults[place] = step, name
        loss_scale = sums["scale"][0] / sums["scaled"][0] if sums["scaled"][0] else np.nan
        # Each process saw the gradient of its own batch's loss: as many times too large as there are batches.
        scale = self._group.batches * (1.0 if np.isnan(loss_scale) else loss_scale)
        return {
            **parameter_columns(sums, list(params), self._index.owners, len(layers)),
            **({} if self._has_zeros else {"zero_fraction": np.full(len(layers), np.nan)}),
            **_only_watched(layer_columns(sums, scale), sums["unwatched"]),
            **trace_columns(sums, self._span.start),
            "dead_fraction": self._activity.dead_shares(layers, self._units, sums),
            "calls": call_column(sums, self._calls, scale),
            "skipped": bool(sums["skipped"][0]),
            "should_learn": bool(sums["learns"][0]),
            # All processes get the same Snapshot, or they would measure different steps.
            "left_out": tuple(name for name, place in params.items() if sums["left_out"][place]),
            "clip": next((c for c, field in CLIP_SUMS.items() if sums[field][0] == sums["processes"][0]), ""),
            "clipped": sums["clipped"][0] / sums["clips"][0] if sums["clips"][0] else None,
            "out_of_sync": self._replicas.apart(sums),
            "weight_gain": self._index.weights.gains(sums["weight"], len(layers)),
            "input_rms": float(np.sqrt(sums["input"][0] / sums["inputs"][0])) if sums["inputs"][0] else np.nan,
            "loss_scale": float(loss_scale),
            "dtype": self._dtype,
            "broadcast": self._broadcast if sums["broadcast"][0] == sums["processes"][0] else "",
            "classes": sums["classes"][0] / sums["classed"][0] if sums["classed"][0] else np.nan,
            "chance": chance_of(sums),
            "ran": _ran(sums),
            # All processes make the same of it, or none makes anything.
            "pairs": self._pairs if sums["graph"][0] == self._graph * sums["processes"][0] else None,
            "first_calls": {
                layer: sums["position"][i] / sums["called"][i] for layer, i in layers.items() if sums["called"][i]
            },
        }


def checksum(name: str) -> int:
    """Return a number by which processes know that they mean the same part."""
    return zlib.crc32(name.encode())


def _compared(pairs: Pairs | None, places: Index, calls: CallSums) -> list[tuple[int, int]] | None:
    """Return the places of layers whose gradients can be compared; None where the graph of the layers is not known."""
    if pairs is None:
        return None
    return calls.compared((places[a], places[b]) for a, b in pairs if a in places and b in places)


def _ran(sums: Mapping[str, Array]) -> Array:
    """Return for each layer 1 if it was called in some process, and 0 if not; NaN where no hook would see it."""
    is_seen = (sums["hooked"] == sums["processes"][0]) & (sums["unwatched"] == 0) & (sums["ran"].max(initial=0) > 0)
    return np.where(is_seen, np.minimum(sums["ran"], 1.0), np.nan)


def _only_watched(columns: Columns, failed: Array) -> Columns:
    """Return the columns with NaN for layers whose hook failed in some process: the sums of the others are partial."""
    return {name: np.where(failed > 0, np.nan, column) for name, column in columns.items()}


def _add_rest(layout: SumLayout, reading: StepReading, index: ModelIndex, calls: CallSums) -> None:
    """Add all but the gradients of calls and the units."""
    log, scalars = reading.log, reading.scalars
    add_outputs(layout, log, calls)
    add_inputs(layout, log, calls)
    add_order(layout, calls)
    for parameters in reading.parameters:
        add_parameters(layout, parameters, index.params)
    add_updates(layout, reading.updates, index.params)
    add_trace(layout, reading.loss, reading.total, reading.span.start)
    layout.count("unwatched", [index.layers[name] for name in log.unwatched if name in index.layers])
    for column, names in (("hooked", log.hooked), ("ran", log.ran)):
        layout.count(column, [index.layers[name] for name in names if name in index.layers])
    layout.count("failed", [0], float(reading.has_failed))
    layout.count("learns", [0], float(reading.should_learn))
    layout.count("left_out", [index.params[name] for name in reading.left_out if name in index.params])
    _add_clip(layout, reading)
    _add_end(layout, reading.end)
    if reading.constant is not None:
        for name, slot in zip(CONSTANT_SUMS, scalars.values(reading.constant), strict=True):
            layout.add(name, [0], [slot])
        layout.count("constants", [0])
    for place, failure in reading.faults.items():
        if place < _MOST_PARTS:
            layout.count("faults", [place])
            layout.count("fault_steps", [place], [failure.step])
            layout.count("fault_names", [place], [checksum(failure.part)])
    if reading.loss_scale is not None:
        layout.add("scale", [0], [scalars.one(reading.loss_scale)])
        layout.count("scaled", [0])
    if isinstance(reading.skipped, Tensor):
        layout.add("skipped", [0], [scalars.one(reading.skipped)])
    else:
        layout.count("skipped", [0], float(reading.skipped))


def _add_end(layout: SumLayout, end: LossEnd) -> None:
    layout.count("broadcast", [0], float(bool(end.broadcast)))
    if end.classes == end.classes:
        layout.count("classes", [0], end.classes)
        layout.count("classed", [0])


def _add_clip(layout: SumLayout, reading: StepReading) -> None:
    case, _, norm = reading.clip
    layout.count("processes", [0])
    if case:
        layout.count(CLIP_SUMS[case], [0])
    if norm is not None:
        layout.add("clipped", [0], [reading.scalars.one(norm.detach().reshape(()))])
        layout.count("clips", [0])
