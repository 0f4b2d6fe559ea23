"""One measured step: what was seen of it becomes one row of sums, and that the columns of a Snapshot."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from gradwatch.containment import OutOfService
from gradwatch.probe.alone import Alone
from gradwatch.probe.columns import Columns, call_column, layer_columns, parameter_columns, trace_columns
from gradwatch.probe.graph import Graph
from gradwatch.probe.modules import own_parameters
from gradwatch.probe.parameters import ParameterReading
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sums import (
    LAYER_SUMS,
    PARAMETER_SUMS,
    STEP_SUMS,
    TRACE_SUMS,
    CallSums,
    Trail,
    add_inputs,
    add_order,
    add_outputs,
    add_parameters,
    add_traces,
)
from gradwatch.probe.terms import Indices, Terms, rows_of
from gradwatch.probe.together import Together
from gradwatch.probe.weights import WeightGains
from gradwatch.records import Array

_MOST_PARTS = 64  # of the watching, that processes tell each other of: as many in all, whatever detectors they have


@dataclass(frozen=True)
class Model:
    """What is watched, in the order in which ``named_modules`` and ``named_parameters`` give it.

    Attributes:
        layers: layer -> its place.
        params: parameter -> its place.
        owners: pairs of a layer and a parameter of its own; a shared one is in several.
        weights: how the gain of each layer's weights follows from their norm.
    """

    layers: Mapping[str, int]
    params: Mapping[str, int]
    owners: tuple[Indices, Indices]
    weights: WeightGains

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], names: Mapping[int, str]) -> Model:
        """The layers by name, and the parameters whose names are given by their ids."""
        layers = {name: i for i, name in enumerate(modules)}
        params = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        owners = [
            (layers[name], params[names[id(param)]])
            for name, module in modules.items()
            for param in own_parameters(module).values()
            if id(param) in names  # a layer that was taken out of the model keeps its own
        ]
        holders, held = np.array(owners, np.intp).reshape(-1, 2).T
        weights = WeightGains.of(modules, {number: params[name] for number, name in names.items()})
        return cls(layers, params, (holders, held), weights)


@dataclass(frozen=True)
class Seen:
    """What is known of a step on the host, and in ``scalars`` on the device."""

    graph: Graph
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
        return Seen(Graph(), DeviceScalars(), (), {}, self.span, ([], []), ([], []), None, False, self.faults, True)


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

    def __init__(self, model: Model, seen: Seen, group: Alone | Together) -> None:
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
        terms = Terms(self._lengths(call_count, unit_count))
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


def _fill(terms: Terms, seen: Seen, model: Model, calls: CallSums) -> None:
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
