"""Hooks and norms together: one optimizer step of a model becomes one Snapshot, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from gradwatch.probe.activations import UnitActivity
from gradwatch.probe.columns import call_columns, forward_columns, parameter_columns
from gradwatch.probe.compiled import Reach
from gradwatch.probe.graph import Graph
from gradwatch.probe.hooks import LayerHooks
from gradwatch.probe.layers import find_layers, network_order, plain_name
from gradwatch.probe.parameters import NONE, ParameterReading
from gradwatch.probe.pending import Pending
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.trace import Traces, trace_columns
from gradwatch.records import Array, Snapshot


class Probe:
    """Measures single optimizer steps of a model: ``attach``, forward and backward, ``read``, step, ``snapshot``.

    Args:
        model: any module.
        include: patterns of the layers to watch; None watches all.
        exclude: patterns of the layers to leave out.
        eagerly: measure without compiled code, which hides the layers in it from hooks.

    Attributes:
        is_attached: a step is being measured, so that hooks are in place.
        total: total gradient norm of the last parameters read, a scalar on the device.

    Raises:
        ValueError: when a pattern matches no layer.
        NotImplementedError: when parameters are read that are sharded over processes.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> probe = Probe(model)
        >>> probe.attach()
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> probe.read(model.parameters())
        >>> probe.snapshot(step=0).grad_norm.round(3)
        array([1.732])
    """

    def __init__(
        self,
        model: nn.Module,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        *,
        eagerly: bool = False,
    ) -> None:
        self.model = model
        self.is_attached = False
        self.total: Tensor | None = None
        self._layers = find_layers(model, include, exclude)
        self.activity = UnitActivity()
        self._reach = Reach(model, self._layers, eagerly=eagerly)
        self._hooks = LayerHooks(self._reach.layers, self.activity)
        self._scalars = DeviceScalars()
        self._readings: list[ParameterReading] = []
        self._ordered = False
        self._names: dict[int, str] = {}
        self._owners: dict[str, list[int]] = {}

    def attach(self) -> None:
        """Put the hooks in place for one step."""
        self.detach()
        self._reach.open()
        self._hooks.attach(self._scalars)
        self.is_attached = True

    def detach(self) -> None:
        """Remove the hooks and drop what was read; does nothing where there are none."""
        self._reach.close()
        self._hooks.detach()
        self._hooks.forget()
        self._scalars = DeviceScalars()
        self._readings = []
        self.total = None
        self.is_attached = False

    def read(self, params: Iterable[nn.Parameter], scale: Tensor | None = None) -> None:
        """Read an optimizer's parameters: accumulated, before clipping. Sets ``total``.

        Args:
            params: those of the optimizer that is about to step.
            scale: what their gradients are still multiplied by, on the device; None where they are unscaled.
        """
        wanted = [param for param in params if param.requires_grad]
        if any(id(param) not in self._names for param in wanted):  # the first step, or layers that came later
            self._list_parameters()
        learning = {self._names[id(param)]: param for param in wanted if id(param) in self._names}
        reading = ParameterReading(learning, self._scalars, scale)
        # The last reading of a parameter counts: manual optimization may step an optimizer several times a batch.
        self._readings = [old for old in self._readings if not set(old.names) & learning.keys()] + [reading]
        self.total = reading.total

    def read_again(self) -> None:
        """Read the total norm as the optimizers saw it, after clipping."""
        for reading in self._readings:
            if reading.grad_norm_after is None:
                reading.read_again(self._scalars)

    def snapshot(self, step: int) -> Snapshot:
        """Bring all numbers to the host, wait for them, and detach."""
        return self.finish(step, Traces()).snapshot()

    def finish(
        self, step: int, traces: Traces, *, loss_scale: Tensor | None = None, skipped: bool | Tensor = False
    ) -> Pending:
        """Send all numbers to the host and detach.

        Args:
            step: index of the optimizer step.
            traces: losses and total norms since the last measured step; drained.
            loss_scale: what the loss was multiplied by before the backward pass.
            skipped: whether the optimizer left out the step; a scalar that is not 0 where only the device knows.
        """
        self._put_in_order()
        graph, scalars = self._hooks.graph, self._scalars
        index = {layer: i for i, layer in enumerate(self._layers)}
        trace_slots = traces.drain(scalars)
        scale, skip = (scalars.many([number]) if isinstance(number, Tensor) else [] for number in (loss_scale, skipped))
        slots = scalars.many([norm for _, _, norm in graph.norms])
        norms = [(index[layer], size, slot) for (layer, size, _), slot in zip(graph.norms, slots, strict=True)]
        shares = {
            "saturated_fraction": _saturated(graph, index, scalars),
            "dead_fraction": self._dead(index),
        }
        readings, owners = self._readings, self._owners
        kinds = tuple(type(module).__name__ for module in self._layers.values())
        self.detach()
        if self._reach.is_blocked(called=bool(graph.first_call), learning=_any_gradient(readings, owners)):
            self._hooks = LayerHooks({}, self.activity)  # they would only be compiled into the model

        def build(values: Array) -> Snapshot:
            columns = parameter_columns(readings, owners, len(index), values)
            columns |= call_columns(graph, index, values, float(values[scale[0]]) if scale else 1.0)
            columns |= forward_columns(norms, shares, len(index), values) | trace_columns(trace_slots, values)
            was_skipped = bool(values[skip[0]]) if skip else bool(skipped)
            return Snapshot(step, tuple(index), kinds, skipped=was_skipped, **columns)

        return Pending(step, scalars.send(), build)

    def _put_in_order(self) -> None:
        if not self._ordered and self._hooks.graph.first_call:
            order = network_order(list(self._layers), self._hooks.graph.first_call)
            self._layers = {name: self._layers[name] for name in order}
            self._list_parameters()
            self._ordered = True

    def _dead(self, index: dict[str, int]) -> list[tuple[int, int]]:
        slots: dict[int, int] = {}
        for layers, shares in self.activity.dead_shares():
            slots.update(zip((index[layer] for layer in layers), self._scalars.values(shares), strict=True))
        return list(slots.items())

    def _list_parameters(self) -> None:
        self._names = {id(param): plain_name(name) for name, param in self.model.named_parameters()}
        _refuse_sharded(self.model)
        self._owners = {name: [] for name in self._names.values()}
        for i, module in enumerate(self._layers.values()):
            for param in module.parameters(recurse=False):
                self._owners[self._names[id(param)]].append(i)


def _refuse_sharded(model: nn.Module) -> None:
    for name, param in model.named_parameters():
        if hasattr(param, "placements"):  # a DTensor: what is here is a part, and its norm is not the norm
            raise NotImplementedError(
                f"the parameter {name} is sharded over processes ({type(param.data).__name__}), which is not supported "
                f"yet; train without the monitor, or with a strategy that keeps whole parameters, such as 'ddp'"
            )


def _saturated(graph: Graph, index: dict[str, int], scalars: DeviceScalars) -> list[tuple[int, int]]:
    slots = scalars.many([share for _, share in graph.saturated])
    return [(index[layer], slot) for (layer, _), slot in zip(graph.saturated, slots, strict=True)]


def _any_gradient(readings: Iterable[ParameterReading], owners: Mapping[str, Sequence[int]]) -> bool:
    slots = [slot for reading in readings for slot in zip(reading.names, reading.grad_norm, strict=True)]
    return any(slot != NONE and owners.get(name) for name, slot in slots)
