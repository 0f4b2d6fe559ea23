"""The Watcher: probe -> Snapshot -> detectors -> findings, step by step, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.checks import require_whole
from gradwatch.containment import Containment, OnError, OutOfService
from gradwatch.diagnosis import diagnose
from gradwatch.pipeline.clips import Clips
from gradwatch.pipeline.contained import Contained
from gradwatch.pipeline.intake import Intake
from gradwatch.pipeline.kept_columns import readings_for
from gradwatch.pipeline.ledger import OnFinding
from gradwatch.pipeline.optimizer_step import LossScale, MeanLoss, ends_a_step, parameters_of, read_accelerated
from gradwatch.pipeline.origin_search import Again, OriginSearch
from gradwatch.pipeline.schedule import Schedule
from gradwatch.probe.parameters import Settings
from gradwatch.probe.probe import Probe
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.updates import KEPT_BYTES
from gradwatch.records import Detector, Diagnosis, Finding, Snapshot
from gradwatch.reporting.notebook import WatchedRun
from gradwatch.torch_internals import past_dispatch_modes, past_torch_function


class Watcher(WatchedRun):
    """Watches a model's optimizer steps: measures some of them, keeps their Snapshots, and finds what is wrong.

    A loop of your own needs ``with`` and :meth:`step`; one that clips calls :meth:`read` before the clip. A trainer
    calls :meth:`begin`, :meth:`read` before the optimizer's step, and :meth:`end`. From a CUDA device a Snapshot, and
    its findings, arrive a step or more later, without synchronising.

    Attributes:
        history: the Snapshots; when there are more than ``history_size``, every second one is dropped.
        steps: number of optimizer steps that have ended.
        origins: the search for the operation that makes NaN.

    Args:
        model: any module.
        every_n_steps, dense_steps: measure every n-th optimizer step, and each of the first ``dense_steps``.
        detectors: objects or functions; None takes all with their defaults.
        include, exclude: patterns (``encoder.*``) of the layers to watch (None for all), and of layers to leave out.
        on_finding: ``"warn"``, ``"stop"``, ``"raise"``, or a function of the Finding that opens.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        history_size: largest number of Snapshots that are kept; fewer where their columns would take 256 MiB.
        columns: patterns (``grad_*``) of the columns that are kept, None for all; the detectors see what they need.
        update_bytes: memory for copies of the weights, for the length of a measured step: what the optimizer changes
            is measured from them. Of what is beyond it a sample is kept, and the norm of the update is estimated.
        measure_eagerly: run measured steps without compiled code, as in :class:`~gradwatch.GradientMonitor`.
        on_error: ``"warn"`` or ``"raise"``, as in :class:`~gradwatch.GradientMonitor`.
        ranks: the processes that train the model together; None finds those of DDP and FSDP.

    Raises:
        ValueError: for a number out of range, an unknown ``on_finding``, or a pattern that matches no layer.
        GradientError: by :meth:`end` and :meth:`step`, when a finding opens and ``on_finding`` is ``"raise"``.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model) as watcher:
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     snapshot = watcher.step(optimizer, loss)  # reads the gradients, then steps the optimizer
        >>> snapshot.step, watcher.findings
        (0, [])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every_n_steps: int = 50,
        dense_steps: int = 20,
        detectors: Sequence[Detector] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        on_finding: OnFinding = "warn",
        total_norm_every_step: bool = False,
        history_size: int = 500,
        columns: Sequence[str] | None = None,
        update_bytes: int = KEPT_BYTES,
        measure_eagerly: bool = False,
        on_error: OnError | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.steps, self._may_have_hooks = 0, False
        self.containment, self._every_total = Containment(on_error), total_norm_every_step
        require_whole(None, least=0, update_bytes=update_bytes)
        settings: dict[str, Any] = {"update_bytes": int(update_bytes), "wanted": readings_for(columns, detectors)}
        settings |= {"ranks": ranks, "eagerly": measure_eagerly, "containment": self.containment}
        self._probe = Probe(model, include, exclude, **settings)
        self.containment.speaks = self._probe.is_speaker
        seen = partial(getattr, self._probe, "has_seen_gradients")
        self._clips = Clips(self._probe.model, seen, self.containment)
        self.origins = OriginSearch(self._probe.model, self.containment, is_shared=self.is_shared)
        self.intake = Intake(
            Schedule(every_n_steps, dense_steps),
            detectors,
            on_finding,
            history_size,
            containment=self.containment,
            is_speaker=self._probe.is_speaker,
            is_shared=self.is_shared,
            columns=columns,
        )
        self.history = self.intake.history
        self._stepped: dict[int, Optimizer] = {}  # by id: in this step, and until the next one begins
        self._loss = MeanLoss()
        self._read: dict[int, Tensor | None] = {}  # id of each optimizer read in this step -> part of the total norm

    @property
    def findings(self) -> list[Finding]:
        """Return all Findings so far, open and closed, in the order they opened."""
        return self.intake.ledger.findings

    @property
    def out_of_service(self) -> list[OutOfService]:
        """Return the parts of the watching that failed and were switched off, in the order they failed."""
        return self.containment.failures

    @property
    def unwatched(self) -> list[str]:
        """Return the layers that ``include`` and ``exclude`` leave out."""
        return self._probe.unwatched

    @property
    def should_stop(self) -> bool:
        """Return True if a finding has opened and ``on_finding`` is ``"stop"``."""
        return self.intake.should_stop

    def set_schedule_interval(self, interval: str) -> None:
        """Note by what a trainer advances the schedules of the learning rate: ``"step"``, ``"epoch"``."""
        self._probe.schedule_interval = interval

    @property
    def is_measuring(self) -> bool:
        """Return True if the current step is measured."""
        return self._probe.is_attached

    @property
    def norms(self) -> list[Tensor]:
        """Return the parts of the total norm that were read in the current step, one an optimizer with gradients."""
        return [norm for norm in self._read.values() if norm is not None]

    @property
    def total_norm(self) -> Tensor | None:
        """Return the total norm of the optimizer read last, on the device; None before it, and of sharded gradients."""
        if norms := self.norms:
            with self.contained():
                return self._probe.whole(norms[-1])
        return None

    def contained(self, *, with_numpy: bool = True) -> Contained:
        """Keep errors and operations of the watching from the training; after an error nothing more is measured."""
        return Contained(self._probe.fail, with_numpy=with_numpy)

    def begin(self, *, is_last: bool = False) -> None:
        """Begin an optimizer step before its first forward pass; attach hooks if it is measured, as the last one is."""
        stepped, self._stepped, self._read = self._stepped, {}, {}
        self.containment.step = self.steps
        if (is_last or self.intake.schedule.is_due(self.steps)) and not self._probe.is_over:
            self._may_have_hooks = True
            with self.contained():
                self._probe.attach([param for optimizer in stepped.values() for param in parameters_of(optimizer)])
                self._clips.attach()
                read_accelerated(stepped.values(), self.read_before_clip, self.read)

    def read_before_clip(self, optimizer: Optimizer, read: Callable[[], object]) -> None:
        """Call ``read``, which reads the optimizer, when ``clip_grad_norm_`` begins in this step, if it is measured."""
        self._clips.read_before(parameters_of(optimizer), read)

    def pause(self) -> None:
        """Take the hooks off the model while it does something else than train, such as a validation."""
        self._probe.pause()

    def resume(self) -> None:
        """Put the hooks back where :meth:`pause` took them off."""
        with self.contained():
            self._probe.resume()

    def abandon(self) -> None:
        """Drop the current step: nothing of it is kept, and it does not count."""
        self._stepped, self._read = {}, {}
        self._clips.detach()
        self._probe.detach()

    def expect(self, loss: Tensor, divisor: int = 1) -> None:
        """Note the loss before its backward pass: in this step only its gradients count, and no penalty's.

        Args:
            loss: of which backward() is called.
            divisor: by which the user's loss was divided, as Lightning does by the number of accumulated batches.
        """
        if self.is_measuring:
            with self.contained():
                self._probe.loss_pass.expect(loss)
                self._probe.look_at_end(loss, divisor)
        self.origins.note(loss)

    def seek_nan(
        self, again: Callable[[], Again], batch: Any = None, state: Tensor | None = None, *, crashed: bool = False
    ) -> None:
        """Search for the operation that made NaN, after the backward pass of a step that turned NaN on a CPU.

        Args:
            again: returns a model, and a function that computes the step's loss with it once more; is called in a fork.
            batch: of the step.
            state: of torch's random numbers when the step began.
            crashed: search though nothing is known to be NaN: the user's code raised an error, maybe because of it.
        """
        origin = self.origins.seek(self.steps, again, batch, state, crashed=crashed)
        if origin is not None:
            self.intake.note_origin(origin)

    @property
    def is_shared(self) -> bool:
        """Return True if several processes measure the same steps: none of them may skip one alone."""
        return self._probe.ranks is not None

    @property
    def has_seen_gradients(self) -> bool:
        """Return True if a gradient has come to a layer's output in the current step."""
        return self._probe.has_seen_gradients

    def read(self, optimizer: Optimizer, scale: Tensor | None = None) -> None:
        """Read the gradients of an optimizer's parameters: unscaled (or still times ``scale``), before clipping."""
        self._read[id(optimizer)] = None
        self._stepped[id(optimizer)] = optimizer
        if not (self.is_measuring or self._every_total):
            return
        with self.contained():
            params = parameters_of(optimizer)
            if self.is_measuring:
                self._clips.compare(params)
                self._probe.read(params, scale, Settings.of(optimizer))
            part = self._probe.total if self.is_measuring else self._probe.part_of_total(params, scale)
            self._read[id(optimizer)] = part

    def read_again(self) -> None:
        """Read the total norm as the optimizer sees it, after clipping; does nothing on an unmeasured step."""
        if self.is_measuring:
            with self.contained():
                self._probe.read_again()

    def measure_updates(self) -> None:
        """Measure what an optimizer has changed, just after its step; :meth:`end` does it for the others."""
        if self.is_measuring:
            with self.contained():
                self._probe.measure_updates()

    def end(
        self,
        loss: Tensor | float | None = None,
        *,
        loss_scale: Tensor | None = None,
        skipped: bool | Tensor = False,
        should_learn: bool = True,
    ) -> Snapshot | None:
        """End an optimizer step; return the latest Snapshot that has arrived: on a CPU that of this step, if measured.

        Args:
            loss: of this step.
            loss_scale: factor of the loss in the backward pass, on the device.
            skipped: the optimizer did not step; a scalar that is not 0 where only the device knows.
            should_learn: the step was meant to change weights, so that one without any gradient is worth a word; False
                where its batch was left out on purpose.
        """
        step, self.steps, latest = self.steps, self.steps + 1, None
        # First the trace, which goes into the Snapshot of this step; last the findings, since announcing one may raise.
        with self.contained(with_numpy=self.is_measuring):
            if self.is_measuring and isinstance(loss, Tensor):
                self._probe.look_at_end(loss)
            self.intake.trace.append(step, loss, self.norms if self._every_total else [], skipped)
        if self.is_measuring:
            self._finish(step, loss_scale, skipped, should_learn=should_learn)
        self._clips.detach()
        if self.intake.is_waiting:
            with self.contained():
                latest = self.intake.process_until(step)
        if self._may_have_hooks and (self._probe.is_over or not self.intake.schedule.is_due(self.steps)):
            self._probe.detach()
            self._may_have_hooks = False
        self.intake.announce()
        return latest

    def _finish(self, step: int, scale: Tensor | None, skipped: bool | Tensor, *, should_learn: bool) -> None:
        """Send off what was measured. Other processes wait for this one's sums, whatever failed here before."""
        should_learn = should_learn and bool(self._read)
        if not (self.norms or self.is_shared or should_learn):  # no gradient at all: the batch was left out
            self._probe.detach()
            return
        if self.is_shared:  # the last measured step tells if the room is enough for the sums of this one
            with self.contained():
                self.intake.catch_up()
        self.read_again()
        self.measure_updates()
        known: dict[str, Any] = {"loss_scale": scale, "skipped": skipped, "should_learn": should_learn}
        with self.contained():
            known["clip"] = self._clips.found()
            self.intake.add(self._probe.finish(step, self.intake.trace, **known))

    def step(
        self,
        optimizer: Optimizer,
        loss: Tensor | float | None = None,
        *,
        scaler: Any = None,
        again: Callable[[], Tensor] | None = None,
        **kwargs: Any,
    ) -> Snapshot | None:
        """Read the gradients and step the optimizer, as ``GradScaler.step`` does; return what :meth:`end` returns.

        While an optimizer of Accelerate accumulates batches, the step goes on, and None is returned.

        Args:
            optimizer: is stepped. One of Accelerate has its scaler with it.
            loss: of this step; a device scalar is not waited for.
            scaler: the ``torch.amp.GradScaler`` that scaled the loss; call ``scaler.update()`` yourself.
            again: computes the loss of this step once more, such as ``lambda: loss_of(model(x), y)``. It is called only
                at a step that turns NaN on a CPU, in a fork of the process, where it changes nothing. It lets the
                finding name the operation and its line.
            **kwargs: are passed to ``optimizer.step``.
        """
        if again is not None:
            if isinstance(loss, Tensor):
                self.origins.note(loss)
            self.seek_nan(lambda: (self._probe.model, again))
        if not ends_a_step(optimizer):
            self._loss.add(loss)
            optimizer.step(**kwargs)
            return None
        loss, scale = self._loss.end(loss), LossScale(scaler, optimizer)
        if id(optimizer) not in self._read:
            scale.unscale_()
            self.read(optimizer, scale.left)
        scale.step(self.read_again, self.measure_updates, **kwargs)
        try:
            return self.end(loss, loss_scale=scale.value, skipped=scale.skipped)
        finally:  # also if a finding is raised, as the user may catch it
            self.begin()

    def diagnosis(self) -> list[Diagnosis]:
        """Return the likely causes of the findings, the likeliest first."""
        return diagnose(self.findings, self.history)

    def close(self, *, quietly: bool = False) -> None:
        """Remove all hooks and wait for the last Snapshots; what was recorded stays. ``quietly`` raises nothing."""
        self._stepped = {}
        self.origins.close()
        self._clips.detach()
        self._probe.detach()
        with self.contained():
            self._probe.sweep()
        with past_torch_function(), past_dispatch_modes(), np.errstate(all="ignore"):
            self.intake.close(quietly=quietly)

    def __enter__(self) -> Watcher:
        self.begin()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(quietly=kind is not None)  # a late finding must not hide another error

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy: it holds what was recorded and watches nothing."""
        self.intake.catch_up()  # before the Probe's: late numbers tell which units fired
        probe = self._probe.without_model()
        clips = Clips(probe.model, bool, self.containment)
        blank: dict[str, Any] = {"_probe": probe, "_clips": clips, "_read": {}, "_stepped": {}}
        return {**self.__dict__, **blank, "origins": OriginSearch(probe.model, self.containment, is_shared=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: steps, layers, findings, memories of detectors and probe, some Snapshots.

        It is the same on all ranks but for what detectors of the user found, so one rank's is enough for all.
        """
        intake = self.intake.state_dict()  # waits for late numbers, which tell which units fired
        own = {"steps": self.steps, "layers": list(self._probe.layers)}
        probe = {"activity": self._probe.activity.state_dict(), "constant": self._probe.constant.state_dict()}
        return own | probe | intake

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where an earlier run stopped, whatever number of processes it had."""
        self.steps = self._probe.since = state["steps"]
        layers = self._probe.layers
        if set(state.get("layers", layers)) == set(layers):
            self._probe.activity.load_state_dict(state.get("activity", {}))
            self._probe.constant.load_state_dict(state.get("constant", (0, 0)))
        self.intake.load_state_dict(state, layers)


watch = Watcher  # "with gradwatch.watch(model) as watcher:" reads better than the class's name
