"""The measurement of one optimizer step: hooks, norms and sums make one Snapshot, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch.containment import Containment, RaisedOnPurpose
from gradwatch.probe.columns import Assembly, before_clip
from gradwatch.probe.compiled import HookableLayers
from gradwatch.probe.constant_prediction import ConstantReader
from gradwatch.probe.dead_units import UnitActivity
from gradwatch.probe.deepspeed import refuse_deepspeed
from gradwatch.probe.hooks import CARRIED, LayerHooks
from gradwatch.probe.layers import Structure, find_layers, named_modules, named_parameters
from gradwatch.probe.loss_graph import LossEnd, read_end
from gradwatch.probe.module_hooks import LossPass, sweep
from gradwatch.probe.parameters import Groups, ParameterReading, Settings, has_gradient, part_of_total_norm
from gradwatch.probe.ranks import Ranks, find_ranks
from gradwatch.probe.readings import ALL, Readings
from gradwatch.probe.reduction import AllRanks, SingleProcess
from gradwatch.probe.sampled_code import Layers
from gradwatch.probe.scalars import Copy, DeviceScalars, Pending
from gradwatch.probe.sums import StepReading, StepSums, checksum
from gradwatch.probe.tensor_parallel import ParallelHooks
from gradwatch.probe.time_steps import TimeHooks
from gradwatch.probe.trace import StepSlots, Trace
from gradwatch.probe.updates import KEPT_BYTES, Updates
from gradwatch.probe.watched_model import WatchedModel
from gradwatch.records import Array, Snapshot

MEASURING = "the measured steps"  # the part that is out of service when the reading of a step fails as a whole
REPLICAS = "the comparison of replicas"
LOSS_END = "the graph of the loss"
_REACHES = 3  # measured steps in which the range of the output is read: targets do not change
CODE = "the layers of a sampled code"
_CODES = 2  # measured steps in which they are looked for


class Probe:
    """Measures single optimizer steps of a model: ``attach``, forward and backward, ``read``, step, ``snapshot``.

    Args:
        include, exclude: patterns of the layers to watch (None for all), and of layers to leave out.
        ranks: the processes that train the model together; None finds them from the model.
        eagerly: measure without compiled code, which hides the layers in it from hooks.
        containment: switches off what fails; None lets every error through.
        update_bytes: bytes of weights that are kept whole for the length of a step, to measure its update.
        wanted: the readings of a step.

    Attributes:
        is_attached: a step is being measured, and the hooks are in place.
        total: this process's part of the total gradient norm of the last parameters read, a scalar on the device. The
            squares of all processes' parts add up. See :meth:`whole`.
        ranks: the processes; None where this one trains alone.
        since: the first step whose loss is in no Snapshot yet.
        activity: the units of the ReLUs that fired so far.
        constant: tells the loss of a constant prediction.
        loss_pass: is given the loss before its backward pass; without it all backward passes count.
        schedule_interval: by which a trainer advances the schedules of the learning rate; empty where unknown.

    Raises:
        ValueError: when a pattern matches no layer, or DeepSpeed trains the model.
        NotImplementedError: when parameters are sharded in a way whose parts can't be distinguished.

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
        update_bytes: int = KEPT_BYTES,
        wanted: Readings = ALL,
    ) -> None:
        refuse_deepspeed(model)  # whoever knows the ranks may not have looked
        self.ranks = find_ranks(model) if ranks is None else ranks
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self.containment = containment or Containment("raise")
        self.is_attached = False
        self.total: Tensor | None = None
        self.since = 0
        self.activity, self.constant = UnitActivity(), ConstantReader()
        self.schedule_interval = ""
        self._eagerly, self._wanted = eagerly, wanted
        self._find = partial(find_layers, self.model, include, exclude)
        self._group = SingleProcess() if self.ranks is None else AllRanks(self.ranks, self.model)
        self._scalars = DeviceScalars()
        self._readings: list[ParameterReading] = []
        self._settings, self._groups = Settings(), Groups()
        self._updates = Updates(update_bytes)
        self._has_failed = self._is_over = False
        self.loss_pass = LossPass()
        self._loss_end: LossEnd | None = None  # of the step, where a loss was seen
        self._reaches = 0
        self._codes: Layers = ()  # that give the mean and the deviation of a sampled code
        self._watch(self._find())

    def _watch(self, layers: Mapping[str, nn.Module]) -> None:
        """Begin to watch layers, or begin again where modules of the model were replaced."""
        self._structure = Structure(self.model)
        self._has_called = False  # over all steps: a step may have only gradients, of the calls of another
        self._layers = layers
        self._hookable = HookableLayers(self.model, layers, eagerly=self._eagerly)
        self._hooks = self._make_hooks(self._hookable.layers)
        sharing = 1 if self.ranks is None else self.ranks.sharing
        self._times = TimeHooks(layers, self.containment, self.loss_pass, sharing)
        self._assembly = Assembly(layers)
        self._watched = WatchedModel(self.model, layers)

    def _make_hooks(self, layers: Mapping[str, nn.Module]) -> LayerHooks:
        if self.ranks is None or self.ranks.sharing == 1:
            hooks = LayerHooks(layers, self.containment, self.loss_pass, self._wanted)
        else:
            hooks = ParallelHooks(layers, self.containment, self.loss_pass, self._wanted, self.ranks)
        hooks.constant = self.constant
        return hooks

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the names of the watched layers."""
        return tuple(self._layers)

    @property
    def unwatched(self) -> list[str]:
        """Return the layers that ``include`` and ``exclude`` leave out."""
        return [name for name in find_layers(self.model) if name not in self._layers]

    @property
    def is_over(self) -> bool:
        """Return True once nothing can be measured any more, since this process failed, or another one did."""
        return self._is_over or (self._has_failed and self.ranks is None)

    def fail(self, error: Exception) -> None:
        """Measure nothing from now on; where other processes wait for this one's numbers, it sends empty sums."""
        self._has_failed = True
        self.containment.fail(MEASURING, error)

    def attach(self, used: Iterable[nn.Parameter] = ()) -> None:
        """Begin to measure a step: put the hooks in place, if they are not there from the last one.

        Args:
            used: the parameters that optimizers have stepped along their gradients just before.
        """
        self.rest()
        self.is_attached = True
        if self._has_failed:
            return
        if not self._structure.is_current():  # for example, a head was replaced
            self.sweep()
            self._watch(self._find(strict=False))
        self._hookable.begin_step()
        self.loss_pass.reset()
        self._loss_end = None
        self._hooks.attach(self._scalars)
        self._times.attach(self._scalars)
        self.containment.run(CARRIED, self._hooks.carried.begin, used)

    def look_at_end(self, loss: Tensor, divisor: int = 1) -> None:
        """Read the end of the graph of a measured step's loss, of the first that has one."""
        if not self.is_attached or self._loss_end is not None or loss.grad_fn is None:
            return
        read = partial(read_end, loss, divisor, with_reach=self._reaches < _REACHES)
        self._loss_end = self.containment.run(LOSS_END, read)
        self._reaches += 1
        if not self._codes and self._reaches <= _CODES:
            self._codes = self.containment.run(CODE, self._hooks.code_layers, loss.grad_fn) or ()

    def sweep(self) -> None:
        """Remove the hooks, also from modules that were made of watched ones: copied, fused, quantized."""
        self.pause()
        if not self._structure.is_current():
            for _, module in named_modules(self.model):
                sweep(module, self._hooks.training)
                sweep(module, self._times.training)

    def pause(self) -> None:
        """Take the hooks off the modules while the model does something else than train; the step goes on."""
        self._hooks.pause()
        self._times.pause()

    def resume(self) -> None:
        """Put the hooks back where :meth:`pause` took them off."""
        if self.is_attached and not self._has_failed:
            self._hooks.resume()
            self._times.resume()

    def rest(self) -> None:
        """End a step and drop what was read; the hooks stay for the next one, and do nothing until then."""
        self._hookable.end_step()
        self._hooks.rest()
        self._times.rest()
        self._hooks.forget()
        self._scalars = DeviceScalars()
        self._readings = []
        self._groups = Groups()
        self._updates.begin()
        self.total = None
        self.is_attached = False

    def detach(self) -> None:
        """End a step, if one is being measured, and remove the hooks."""
        self.rest()
        self._updates.free()
        self._hooks.carried.forget()
        self.pause()

    @property
    def has_seen_gradients(self) -> bool:
        """Return True if a gradient has come to a layer's output in the current step."""
        return bool(self._hooks.log.arrivals)

    def without_model(self) -> Probe:
        """Return a Probe that watches nothing and knows which units fired."""
        blank = Probe(nn.Module(), containment=self.containment)
        blank._layers = dict.fromkeys(self._layers, blank.model)  # their names
        blank.activity.load_state_dict(self.activity.state_dict())
        blank.constant.load_state_dict(self.constant.state_dict())
        return blank

    def read(
        self, params: Sequence[nn.Parameter], scale: Tensor | None = None, settings: Settings | None = None
    ) -> None:
        """Read an optimizer's parameters: accumulated, before clipping, maybe still times ``scale``. Sets ``total``."""
        if self._has_failed:
            return
        self._settings = settings or Settings()
        learning = self._watched.names_of(params)
        wanted, to = self._wanted, (self._scalars, self.ranks)
        weights = self._updates.keep(learning, *to) if wanted.updates else {}
        reading = ParameterReading(learning, *to, scale, weights, with_zeros=wanted.zeros)
        reading.carried = self.containment.run(CARRIED, self._hooks.carried.among, learning) or {}
        self._groups.add(learning, self._settings)
        self._groups.is_empty &= not any(param.requires_grad for param in params)
        # The last reading of a parameter counts: manual optimization may step an optimizer several times a batch.
        self._readings = [old for old in self._readings if not set(old.names) & learning.keys()] + [reading]
        self.total = reading.total

    def part_of_total(self, params: Sequence[nn.Parameter], scale: Tensor | None = None) -> Tensor | None:
        """Return this process's part of the total norm, for a step that is not measured; None without a gradient."""
        return part_of_total_norm(params, self.ranks, scale) if params else None

    def whole(self, part: Tensor | None) -> Tensor | None:
        """Return the total norm from a part; None where processes hold different gradients: the Snapshot has it."""
        if part is None or self.ranks is None:
            return part
        # All processes hold the same gradients, so each has an equal part of the square.
        is_cut = any(self.ranks.is_cut(param) for _, param, _ in named_parameters(self.model))
        return None if is_cut else part * self.ranks.world**0.5

    @property
    def is_speaker(self) -> bool:
        """Return True for the one process that warns for all."""
        return self.ranks is None or self.ranks.is_first

    def read_again(self) -> None:
        """Read the total norm as the optimizers saw it, after clipping."""
        for reading in self._readings:
            if reading.grad_norm_after is None:
                reading.read_again(self._scalars)

    def measure_updates(self) -> None:
        """Measure what the optimizers have changed in the parameters that were read since the last call."""
        if not self._has_failed:
            self._updates.measure(self._scalars)

    def snapshot(self, step: int) -> Snapshot | None:
        """Bring all numbers to the host, wait for them, and detach; None where no process had a gradient."""
        self.since = step
        self.measure_updates()
        pending = self.finish(step, Trace())
        self.detach()
        return pending.snapshot()

    def finish(
        self,
        step: int,
        trace: Trace,
        *,
        loss_scale: Tensor | None = None,
        skipped: bool | Tensor = False,
        should_learn: bool = False,
        clip: tuple[str, float, Tensor | None] = ("", float("nan"), None),
    ) -> Pending:
        """Send all numbers to the host and end the step. With several processes all have to call this.

        Args:
            step: index of the optimizer step.
            trace: losses and total norms since the last measured step; is emptied.
            loss_scale: what the loss was multiplied by before the backward pass.
            skipped: the optimizer skipped the step; a scalar that is not 0 where only the device knows.
            should_learn: the step was meant to change weights: it makes a Snapshot even without any gradient.
            clip: the Snapshot's ``clip`` and ``clip_max_norm``, and the norm before a clip that preceded ``read``.
        """
        log, readings, settings, groups = self._hooks.log, self._readings, self._settings, self._groups
        used = {"optimizer": settings.optimizer, "learning_rate": settings.learning_rate}
        used |= {"schedule_interval": self.schedule_interval, "clip_max_norm": clip[1]}
        used |= {"frozen_size": float(self._watched.frozen_size), "code": self._codes}
        end, self._loss_end = self._loss_end or LossEnd(), None
        numbers = None if end.reach is None else Copy(end.reach.numbers)
        losses, totals = self._drained(trace)
        span = range(min([self.since, *losses[0][:1], *totals[0][:1]]), step + 1)
        self._agree()
        left_out = self._watched.left_out(all_of_them=not groups)
        is_frozen = groups.is_empty and self._watched.is_all_frozen
        replicas = self.containment.run(REPLICAS, self._group.replicas.read, self._scalars) or ()
        reading = StepReading(
            log, self._scalars, readings, self._updates, self._times.slots, span, losses, totals, loss_scale, skipped,
            should_learn=should_learn and bool(groups or left_out or is_frozen), left_out=left_out, clip=clip,
            faults=self.containment.shared_failures(), replicas=replicas, pairs=self._hooks.pairs, end=end,
            constant=self.constant.numbers, has_zeros=self._wanted.zeros,
        )  # fmt: skip
        sums = self._sums_of(reading)
        transfer = sums.scalars.send()
        # The numbers may arrive after the next steps, and after a change of layers: "build" keeps what it needs.
        assembly, updates, self.since = self._assembly, self._updates, step + 1
        constant = self.constant if reading.constant is not None else None
        self.rest()
        self._has_called = self._has_called or bool(log.layers)
        is_unseen = not self._has_called and has_gradient(readings, self._watched.index.owned)
        if self._hookable.is_blocked(unseen=is_unseen and self._structure.is_current()):
            self._hooks.detach()
            self._hooks = self._make_hooks({})  # hooks would only be compiled into the model

        def build(values: Array) -> Snapshot | None:
            columns = sums.columns(values)
            if constant is not None:  # classes tell it without a reading
                constant.learn(columns["chance"] if np.isnan(columns["classes"]) else np.nan)
            updates.note(columns["params"], columns["param_weight_norm"], columns["param_update_norm"])
            self._switch_off_failed(sums, step)
            more = {**used, **groups.columns(columns["params"])}
            if end.reach is not None and numbers is not None:
                more |= {"last_activation": end.reach.activation}
                more |= dict(zip(("out_of_reach", "least_error"), map(float, numbers.numbers()), strict=True))
            more |= before_clip(columns, clip[1], columns.pop("clipped"))
            if sums.failed:  # it makes no Snapshot: the losses go into the next one
                more |= {"total_norm": np.nan, "should_learn": False}
            return assembly.make(step, {**columns, **more})

        return Pending(step, transfer, build)

    def _switch_off_failed(self, sums: StepSums, step: int) -> None:
        """Switch off what has failed in some process, which may be this one."""
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
        """Make sure that all processes watch the same. Where they do not, all of them notice, and stop measuring."""
        try:
            self._group.check([*self._watched.index.layers, *self._watched.index.params, repr(self._wanted)])
        except ValueError:
            self._is_over = True
            raise

    def _drained(self, trace: Trace) -> tuple[StepSlots, StepSlots]:
        try:
            return trace.drain(self._scalars)
        except Exception as error:
            self.fail(error)
            return ([], []), ([], [])

    def _sums_of(self, reading: StepReading) -> StepSums:
        """Return the sums of what was read, and empty sums where that fails: other processes wait for them."""
        index = self._watched.index
        if not self._has_failed:
            try:
                return StepSums(index, reading, self._group, self.activity)
            except RaisedOnPurpose:
                raise
            except Exception as error:
                self.fail(error)
        return StepSums(index, reading.without_numbers(), self._group, self.activity)
