"""Hooks and norms together: one optimizer step of a model becomes one Snapshot, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradwatch.probe.activations import UnitActivity
from gradwatch.probe.columns import call_columns, forward_columns, parameter_columns
from gradwatch.probe.hooks import LayerHooks
from gradwatch.probe.layers import find_layers, network_order
from gradwatch.probe.parameters import ParameterReading
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.trace import Trace
from gradwatch.records import NO_VALUES, Array, Snapshot


class Probe:
    """Measures single optimizer steps of a model: ``attach``, forward and backward, ``read``, step, ``snapshot``.

    Args:
        model: any module.
        include: patterns of the layers to watch; None watches all.
        exclude: patterns of the layers to leave out.

    Raises:
        ValueError: when a pattern matches no layer.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> probe = Probe(model)
        >>> probe.attach()
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> probe.read(model.parameters())
        >>> probe.snapshot(step=0).grad_norm.round(3)
        array([1.732])
    """

    def __init__(self, model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> None:
        self.model = model
        self.layers = find_layers(model, include, exclude)
        self.total: Tensor | None = None
        self._ordered = False
        self._activity = UnitActivity()
        self._hooks: LayerHooks | None = None
        self._readings: list[ParameterReading] = []
        self._scalars = DeviceScalars()

    @property
    def is_attached(self) -> bool:
        """Whether a step is being measured, so that hooks are in place."""
        return self._hooks is not None

    def attach(self) -> None:
        """Put the hooks in place for one step."""
        self.detach()
        self._hooks = LayerHooks(self.layers, self._scalars, self._activity)

    def detach(self) -> None:
        """Remove the hooks and drop what was read; does nothing where there are none."""
        if self._hooks is not None:
            self._hooks.detach()
        self._hooks = None
        self._readings = []
        self._scalars = DeviceScalars()
        self.total = None

    def read(self, params: Iterable[nn.Parameter]) -> None:
        """Read an optimizer's parameters: unscaled and accumulated, before clipping. Sets ``total`` (on the device)."""
        names = {id(param): name for name, param in self.model.named_parameters()}
        learning = {names[id(param)]: param for param in params if param.requires_grad and id(param) in names}
        reading = ParameterReading(learning, self._scalars)
        # The last reading of a parameter counts: manual optimization may step an optimizer several times a batch.
        self._readings = [old for old in self._readings if not old.params.keys() & learning.keys()] + [reading]
        self.total = reading.total

    def read_again(self) -> None:
        """Read the total norm as the optimizers saw it, after clipping."""
        for reading in self._readings:
            if not reading.grad_norm_after:
                reading.read_again(self._scalars)

    def snapshot(
        self,
        step: int,
        loss: Trace | None = None,
        total: Trace | None = None,
        *,
        loss_scale: Tensor | None = None,
        skipped: bool = False,
    ) -> Snapshot:
        """Bring all numbers to the host and detach.

        Args:
            step: index of the optimizer step.
            loss: losses since the last snapshot; drained.
            total: total norms since then; drained.
            loss_scale: what the loss was multiplied by before the backward pass.
            skipped: whether the optimizer left out the step.
        """
        scalars, hooks = self._scalars, self._hooks or LayerHooks({}, self._scalars, self._activity)
        traces = [_drain(trace, scalars) for trace in (loss, total)]
        scale = None if loss_scale is None else scalars.values(loss_scale.reshape(1))
        forward = _keep_forward(hooks, scalars)
        shares = {"saturated_fraction": _keep_saturated(hooks, scalars), "dead_fraction": self._keep_dead(scalars)}
        values = scalars.to_host()
        self._put_in_order(hooks)
        layers = tuple(self.layers)
        columns = parameter_columns(self._readings, self._owners(), values)
        columns |= call_columns(hooks.calls, layers, values, 1.0 if scale is None else float(values[scale[0]]))
        columns |= forward_columns(forward, shares, layers, values)
        kinds = tuple(type(module).__name__ for module in self.layers.values())
        self.detach()
        return Snapshot(step, layers, kinds, skipped=skipped, **columns, **_trace_fields(traces, values))

    def _put_in_order(self, hooks: LayerHooks) -> None:
        if not self._ordered and hooks.first_call:
            self.layers = {name: self.layers[name] for name in network_order(list(self.layers), hooks.first_call)}
            self._ordered = True

    def _owners(self) -> dict[str, list[str]]:
        names = {id(param): name for name, param in self.model.named_parameters()}
        return {
            layer: [names[id(param)] for param in module.parameters(recurse=False)]
            for layer, module in self.layers.items()
        }

    def _keep_dead(self, scalars: DeviceScalars) -> list[tuple[str, int]]:
        layers, shares = self._activity.dead_shares()
        return [] if shares is None else list(zip(layers, scalars.values(shares), strict=True))


def _keep_forward(hooks: LayerHooks, scalars: DeviceScalars) -> list[tuple[str, int, int]]:
    slots = _keep([norm for _, _, norm in hooks.forward_norms], scalars)
    return [(layer, numel, slot) for (layer, numel, _), slot in zip(hooks.forward_norms, slots, strict=True)]


def _keep_saturated(hooks: LayerHooks, scalars: DeviceScalars) -> list[tuple[str, int]]:
    slots = _keep([share for _, share in hooks.saturated], scalars)
    return [(layer, slot) for (layer, _), slot in zip(hooks.saturated, slots, strict=True)]


def _keep(numbers: Sequence[Tensor], scalars: DeviceScalars) -> list[int]:
    """Slots of device scalars of any kind, one stack for each kind."""
    slots = [0] * len(numbers)
    kinds = {(number.device, number.dtype) for number in numbers}
    for kind in kinds:
        here = [i for i, number in enumerate(numbers) if (number.device, number.dtype) == kind]
        for i, slot in zip(here, scalars.values(torch.stack([numbers[i] for i in here])), strict=True):
            slots[i] = slot
    return slots


def _drain(trace: Trace | None, scalars: DeviceScalars) -> tuple[list[int], list[int]]:
    return ([], []) if trace is None else trace.drain(scalars)


def _trace_fields(traces: Sequence[tuple[list[int], list[int]]], values: Array) -> dict[str, Any]:
    (loss_steps, loss_slots), (total_steps, total_slots) = traces
    steps = np.array(sorted({*loss_steps, *total_steps}), np.int64)
    losses, totals = (np.full(len(steps), np.nan) for _ in range(2))
    losses[np.searchsorted(steps, loss_steps)] = values[loss_slots] if loss_slots else NO_VALUES
    totals[np.searchsorted(steps, total_steps)] = values[total_slots] if total_slots else NO_VALUES
    return {
        "loss": float(losses[-1]) if len(losses) else float("nan"),
        "trace_step": steps,
        "trace_loss": losses,
        "trace_total_norm": totals,
    }
