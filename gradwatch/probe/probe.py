"""Hooks and norms together: one optimizer step of a model becomes one Snapshot, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch.containment import Containment, RaisedOnPurpose
from gradwatch.probe.columns import Assembly
from gradwatch.probe.compiled import HookableLayers
from gradwatch.probe.dead_units import UnitActivity
from gradwatch.probe.hooks import LayerHooks
from gradwatch.probe.layers import Model, Register, find_layers
from gradwatch.probe.module_hooks import LossPass, sweep
from gradwatch.probe.modules import Structure, named_modules, named_parameters
from gradwatch.probe.parameters import NONE, ParameterReading, Settings, part_of_total_norm
from gradwatch.probe.ranks import Ranks, find_ranks
from gradwatch.probe.reduction import AllRanks, SingleProcess
from gradwatch.probe.scalars import DeviceScalars, Pending
from gradwatch.probe.sums import Seen, StepSums, Trail, checksum
from gradwatch.probe.tensor_parallel import ParallelHooks
from gradwatch.probe.time_steps import TimeHooks
from gradwatch.probe.trace import Traces
from gradwatch.records import Array, Snapshot

MEASURING = "the measured steps"  # what is out of service when reading a step fails as a whole


class Probe:
    """Measures single optimizer steps of a model: ``attach``, forward and backward, ``read``, step, ``snapshot``.

    Args:
        model: any module.
        include: patterns of the layers to watch; None watches all.
        exclude: patterns of the layers to leave out.
        ranks: the processes that train the model together; None finds them out from the model.
        eagerly: measure without compiled code, which hides the layers in it from hooks.
        containment: switches off what fails; None lets every error through.

    Attributes:
        is_attached: a step is being measured, so that hooks are in place.
        total: total gradient norm of the last parameters read, as far as it counts in this process, a scalar on the
            device: the squares of all processes' add up. See :meth:`whole`.
        ranks: the processes; None where this one trains alone.
        since: the first step whose loss no Snapshot has yet.
        loss_pass: takes the loss before its backward pass; where it gets none, all backward passes count.

    Raises:
        ValueError: when a pattern matches no layer.
        NotImplementedError: when parameters are cut up over processes in a way whose parts are not told apart.

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
        ranks: Ranks | None = None,
        *,
        eagerly: bool = False,
        containment: Containment | None = None,
    ) -> None:
        self.ranks = find_ranks(model) if ranks is None else ranks
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.containment = containment or Containment("raise")
        self.is_attached = False
        self.total: Tensor | None = None
        self.since = 0
        self.activity = UnitActivity()
        self._eagerly = eagerly
        self._find = partial(find_layers, self.model, include, exclude)
        self._group = (
            SingleProcess(self.activity) if self.ranks is None else AllRanks(self.ranks, self.activity, self.model)
        )
        self._scalars = DeviceScalars()
        self._readings: list[ParameterReading] = []
        self._settings = Settings()
        self._has_failed = self._is_over = False
        self.loss_pass = LossPass()
        self._look_at(self._find())

    def _look_at(self, layers: Mapping[str, nn.Module]) -> None:
        """Begin with a model, or begin anew where its modules are others than they were."""
        self._structure = Structure(self.model)
        self._has_called = False  # in any step: one may have gradients of the calls of another
        self._layers = layers
        self._reach = HookableLayers(self.model, layers, eagerly=self._eagerly)
        self._hooks = self._make_hooks(self._reach.layers)
        sharing = 1 if self.ranks is None else self.ranks.sharing
        self._times = TimeHooks(layers, self.containment, self.loss_pass, sharing)
        self._assembly = Assembly(layers)
        self._register = Register(self.model, layers)

    def _make_hooks(self, layers: Mapping[str, nn.Module]) -> LayerHooks:
        if self.ranks is None or self.ranks.sharing == 1:
            return LayerHooks(layers, self.containment, self.loss_pass)
        return ParallelHooks(layers, self.containment, self.loss_pass, self.ranks)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are watched."""
        return tuple(self._layers)

    @property
    def is_over(self) -> bool:
        """Return True once nothing can be measured any more: this process has failed, or has heard of one that has."""
        return self._is_over or (self._has_failed and self.ranks is None)

    def fail(self, error: Exception) -> None:
        """Measure nothing from now on; where other processes wait for this one's numbers, it goes on sending none."""
        self._has_failed = True
        self.containment.fail(MEASURING, error)

    def attach(self) -> None:
        """Put the hooks in place for one step, if they are not there from the last one."""
        self.rest()
        self.is_attached = True
        if self._has_failed:
            return
        if not self._structure.is_current():  # a head was replaced, say
            self.sweep()
            self._look_at(self._find(strict=False))
        self._reach.open()
        self.loss_pass.reset()
        self._hooks.attach(self._scalars)
        self._times.attach(self._scalars)

    def sweep(self) -> None:
        """Remove the hooks, also from modules that were made of watched ones: copied, fused, quantized."""
        self.pause()
        if not self._structure.is_current():
            for _, module in named_modules(self.model):
                sweep(module, self._hooks.training)
                sweep(module, self._times.training)

    def pause(self) -> None:
        """Take the hooks off the modules while these do something else than train; the step goes on."""
        self._hooks.pause()
        self._times.pause()

    def resume(self) -> None:
        """Put them back."""
        if self.is_attached and not self._has_failed:
            self._hooks.resume()
            self._times.resume()

    def rest(self) -> None:
        """End a step and drop what was read; the hooks stay for the next one, and do nothing until it begins."""
        self._reach.close()
        self._hooks.rest()
        self._times.rest()
        self._hooks.forget()
        self._scalars = DeviceScalars()
        self._readings = []
        self.total = None
        self.is_attached = False

    def detach(self) -> None:
        """End a step, if one is under way, and remove the hooks."""
        self.rest()
        self.pause()

    @property
    def has_seen_gradients(self) -> bool:
        """Return True if a gradient has come to a layer's output in the step under way."""
        return bool(self._hooks.graph.arrivals)

    def without_model(self) -> Probe:
        """One that knows what was seen of the units, and holds nothing on the device."""
        blank = Probe(nn.Module(), containment=self.containment)
        blank._layers = dict.fromkeys(self._layers, blank.model)  # their names
        with suppress(RuntimeError):  # a device that has failed has nothing to tell
            blank.activity.load_state_dict(self.activity.state_dict())
        return blank

    def read(
        self, params: Iterable[nn.Parameter], scale: Tensor | None = None, settings: Settings | None = None
    ) -> None:
        """Read an optimizer's parameters: accumulated, before clipping. Sets ``total``.

        Args:
            params: those of the optimizer that is about to step.
            scale: what their gradients are still multiplied by, on the device; None where they are unscaled.
            settings: the optimizer's.
        """
        if self._has_failed:
            return
        self._settings = settings or Settings()
        learning = self._register.take(params)
        reading = ParameterReading(learning, self._scalars, self.ranks, scale)
        # The last reading of a parameter counts: manual optimization may step an optimizer several times a batch.
        self._readings = [old for old in self._readings if not set(old.names) & learning.keys()] + [reading]
        self.total = reading.total

    def part_of_total(self, params: Sequence[nn.Parameter], scale: Tensor | None = None) -> Tensor | None:
        """What counts here of the total gradient norm, of a step that is not measured; None without a gradient."""
        return part_of_total_norm(params, self.ranks, scale) if params else None

    def whole(self, part: Tensor | None) -> Tensor | None:
        """The total norm that a part is of; None where each process holds other gradients: the Snapshot has it."""
        if part is None or self.ranks is None:
            return part
        is_cut = any(self.ranks.is_cut(param) for _, param, _ in named_parameters(self.model))
        return None if is_cut else part * self.ranks.world**0.5

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that speaks for all."""
        return self.ranks is None or self.ranks.is_first

    def read_again(self) -> None:
        """Read the total norm as the optimizers saw it, after clipping."""
        for reading in self._readings:
            if reading.grad_norm_after is None:
                reading.read_again(self._scalars)

    def snapshot(self, step: int) -> Snapshot | None:
        """Bring all numbers to the host, wait for them, and detach; None where no process had a gradient."""
        self.since = step
        pending = self.finish(step, Traces())
        self.detach()
        return pending.snapshot()

    def finish(
        self, step: int, traces: Traces, *, loss_scale: Tensor | None = None, skipped: bool | Tensor = False
    ) -> Pending:
        """Send all numbers to the host and end the step. With several processes all have to call this.

        Args:
            step: index of the optimizer step.
            traces: losses and total norms since the last measured step; drained.
            loss_scale: what the loss was multiplied by before the backward pass.
            skipped: whether the optimizer left out the step; a scalar that is not 0 where only the device knows.
        """
        graph, readings, settings = self._hooks.graph, self._readings, vars(self._settings)
        losses, totals = self._drained(traces)
        span = range(min([self.since, *losses[0][:1], *totals[0][:1]]), step + 1)
        self._agree()
        numbers = (span, losses, totals, loss_scale, skipped)
        faults = self.containment.shared_failures()
        seen = Seen(graph, self._scalars, readings, self._times.slots, *numbers, faults)
        sums, left_out = self._sums_of(seen), self._register.left_out()
        transfer = sums.scalars.send()
        self.since = step + 1
        self.rest()
        self._has_called = self._has_called or bool(graph.layers)
        unseen = not self._has_called and _has_gradient(self._register.model, readings)
        if self._reach.is_blocked(unseen=unseen and self._structure.is_current()):
            self._hooks.detach()
            self._hooks = self._make_hooks({})  # they would only be compiled into the model

        def build(values: Array) -> Snapshot | None:
            columns = sums.columns(values)
            self._hear_of(sums, step)
            if sums.failed:
                columns["total_norm"] = np.nan  # so that the losses go into the next Snapshot, if there is one
            return self._assembly.make(step, {**columns, **settings, "left_out": left_out})

        return Pending(step, transfer, build)

    def _hear_of(self, sums: StepSums, step: int) -> None:
        """Take in what has failed in some process; it may have been this one."""
        for layer in sums.unwatched:
            self.containment.failed_elsewhere(f"layer {layer}", step)
        for place, (since, name) in sums.faults.items():
            for part in self.containment.shared[place : place + 1]:
                if checksum(part) == name:  # else this process has other detectors
                    self.containment.failed_elsewhere(part, since)
        if sums.failed:
            self._is_over = True
            self.containment.failed_elsewhere(MEASURING, step)

    def _agree(self) -> None:
        """Make sure that all processes watch the same; where they do not, all of them know, and none goes on."""
        try:
            self._group.check([*self._register.model.layers, *self._register.model.params])
        except ValueError:
            self._is_over = True
            raise

    def _drained(self, traces: Traces) -> tuple[Trail, Trail]:
        try:
            return traces.drain(self._scalars)
        except Exception as error:
            self.fail(error)
            return ([], []), ([], [])

    def _sums_of(self, seen: Seen) -> StepSums:
        """Lay out the sums; where that fails, those of nothing, as other processes wait for them."""
        model = self._register.model
        if not self._has_failed:
            try:
                return StepSums(model, seen, self._group)
            except RaisedOnPurpose:
                raise
            except Exception as error:
                self.fail(error)
        return StepSums(model, seen.without_numbers(), self._group)


def _has_gradient(model: Model, readings: Iterable[ParameterReading]) -> bool:
    owned = set(model.owners[1].tolist())
    slots = (slot for reading in readings for slot in zip(reading.names, reading.grad_norm, strict=True))
    return any(slot != NONE and model.params[name] in owned for name, slot in slots)
