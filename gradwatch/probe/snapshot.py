"""Hooks and norms together: one optimizer step of a model becomes one Snapshot, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch.probe.activations import UnitActivity
from gradwatch.probe.alone import Alone
from gradwatch.probe.assembly import Assembly
from gradwatch.probe.compiled import Reach
from gradwatch.probe.find_ranks import find_ranks
from gradwatch.probe.hooks import LayerHooks
from gradwatch.probe.layers import find_layers
from gradwatch.probe.over_time import TimeHooks
from gradwatch.probe.parallel import ParallelHooks
from gradwatch.probe.parameters import NONE, ParameterReading, part_of_total_norm
from gradwatch.probe.pending import Pending
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.register import Register
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.settings import Settings
from gradwatch.probe.step import Model, Seen, StepSums
from gradwatch.probe.together import Together
from gradwatch.probe.trace import Traces
from gradwatch.records import Array, Snapshot


class Probe:
    """Measures single optimizer steps of a model: ``attach``, forward and backward, ``read``, step, ``snapshot``.

    Args:
        model: any module.
        include: patterns of the layers to watch; None watches all.
        exclude: patterns of the layers to leave out.
        ranks: the processes that train the model together; None finds them out from the model.
        eagerly: measure without compiled code, which hides the layers in it from hooks.

    Attributes:
        is_attached: a step is being measured, so that hooks are in place.
        total: total gradient norm of the last parameters read, as far as it counts in this process, a scalar on the
            device: the squares of all processes' add up. See :meth:`whole`.
        ranks: the processes; None where this one trains alone.
        since: the first step whose loss no Snapshot has yet.

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
    ) -> None:
        self.ranks = find_ranks(model) if ranks is None else ranks
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.is_attached = False
        self.total: Tensor | None = None
        self.since = 0
        self._layers = find_layers(self.model, include, exclude)
        self.activity = UnitActivity()
        self._reach = Reach(self.model, self._layers, eagerly=eagerly)
        self._hooks = self._make_hooks(self._reach.layers)
        self._times = TimeHooks(self._layers, 1 if self.ranks is None else self.ranks.sharing)
        self._group = Alone(self.activity) if self.ranks is None else Together(self.ranks, self.activity, self.model)
        self._scalars = DeviceScalars()
        self._readings: list[ParameterReading] = []
        self._assembly = Assembly(self._layers)
        self._register = Register(self.model, self._layers)
        self._settings = Settings()

    def _make_hooks(self, layers: Mapping[str, nn.Module]) -> LayerHooks:
        if self.ranks is None or self.ranks.sharing == 1:
            return LayerHooks(layers, self.activity)
        return ParallelHooks(layers, self.activity, self.ranks)

    def attach(self) -> None:
        """Put the hooks in place for one step."""
        self.detach()
        self._reach.open()
        self._hooks.attach(self._scalars)
        self._times.attach(self._scalars)
        self.is_attached = True

    def detach(self) -> None:
        """Remove the hooks and drop what was read; does nothing where there are none."""
        self._reach.close()
        self._hooks.detach()
        self._times.detach()
        self._hooks.forget()
        self._scalars = DeviceScalars()
        self._readings = []
        self.total = None
        self.is_attached = False

    def without_model(self) -> Probe:
        """One that knows what was seen of the units, and holds nothing on the device."""
        blank = Probe(nn.Module())
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
        is_cut = any(map(self.ranks.is_cut, self.model.parameters()))
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
        return self.finish(step, Traces()).snapshot()

    def finish(
        self, step: int, traces: Traces, *, loss_scale: Tensor | None = None, skipped: bool | Tensor = False
    ) -> Pending:
        """Send all numbers to the host and detach. With several processes all have to call this.

        Args:
            step: index of the optimizer step.
            traces: losses and total norms since the last measured step; drained.
            loss_scale: what the loss was multiplied by before the backward pass.
            skipped: whether the optimizer left out the step; a scalar that is not 0 where only the device knows.
        """
        model, left_out = self._register.model, self._register.left_out()
        self._group.check([*model.layers, *model.params])
        graph, scalars, readings = self._hooks.graph, self._scalars, self._readings
        losses, totals = traces.drain(scalars)
        span = range(min([self.since, *losses[0][:1], *totals[0][:1]]), step + 1)
        seen = Seen(graph, scalars, readings, self._times.slots, span, losses, totals, loss_scale, skipped)
        sums, transfer, settings = StepSums(model, seen, self._group), scalars.send(), vars(self._settings)
        self.since = step + 1
        self.detach()
        if self._reach.is_blocked(unseen=not graph.first_call and _has_gradient(model, readings)):
            self._hooks = self._make_hooks({})  # they would only be compiled into the model

        def build(values: Array) -> Snapshot | None:
            return self._assembly.make(step, {**sums.columns(values), **settings, "left_out": left_out})

        return Pending(step, transfer, build)


def _has_gradient(model: Model, readings: Iterable[ParameterReading]) -> bool:
    owned = set(model.owners[1].tolist())
    slots = (slot for reading in readings for slot in zip(reading.names, reading.grad_norm, strict=True))
    return any(slot != NONE and model.params[name] in owned for name, slot in slots)
