"""The pipeline, free of any trainer: probe -> detectors -> findings, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.detectors.announce import OnFinding
from gradwatch.diagnosis import diagnose
from gradwatch.intake import Intake
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.schedule import Schedule
from gradwatch.probe.settings import Settings
from gradwatch.probe.snapshot import Probe
from gradwatch.probe.stepping import LossScale
from gradwatch.records import Detector, Diagnosis, Finding, Snapshot


class Watcher:
    """Watches a model's optimizer steps: which are measured, what they held, what is wrong.

    A loop of your own needs ``with`` and :meth:`step`; one that clips calls :meth:`read` before the clip. A trainer
    calls :meth:`begin`, :meth:`read` before the optimizer's step, and :meth:`end`. From a CUDA device a Snapshot, and
    what is found in it, comes a step or more later, as nobody waits for it.

    Attributes:
        history: the Snapshots; when there are more than ``history_size``, every second one is let go.
        steps: how many optimizer steps have ended.

    Args:
        model: any module.
        every_n_steps, dense_steps: measure every so many optimizer steps, and each of the first so many.
        detectors: objects or functions; None takes all with their defaults.
        include, exclude: patterns (``encoder.*``) of the layers to watch, None for all, and of those to leave out.
        on_finding: ``"warn"``, ``"stop"``, ``"raise"``, or a function that is called with the Finding that opens.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        history_size: how many Snapshots are kept.
        measure_eagerly: run measured steps without compiled code, as in :class:`~gradwatch.GradientMonitor`.
        ranks: processes whose numbers are added up, by which all watch the model; None finds those of DDP and FSDP.

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
        measure_eagerly: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.steps = 0
        self._every_total = total_norm_every_step
        self._probe = Probe(model, include, exclude, ranks, eagerly=measure_eagerly)
        schedule = Schedule(every_n_steps, dense_steps)
        self.intake = Intake(schedule, detectors, on_finding, history_size, aloud=self._probe.speaks)
        self.history = self.intake.history
        self._read: dict[int, Tensor | None] = {}  # optimizers read in this step, and their parts of the total norm

    @property
    def findings(self) -> list[Finding]:
        """All Findings so far, open and closed, in the order they opened."""
        return self.intake.ledger.findings

    @property
    def should_stop(self) -> bool:
        """Whether a finding has opened and ``on_finding`` is ``"stop"``."""
        return self.intake.should_stop

    @property
    def is_measuring(self) -> bool:
        """Whether the step under way is measured."""
        return self._probe.is_attached

    @property
    def norms(self) -> list[Tensor]:
        """What was read of the total gradient norm in the step under way, one of each optimizer that has gradients."""
        return [norm for norm in self._read.values() if norm is not None]

    @property
    def total_norm(self) -> Tensor | None:
        """Total gradient norm of the step under way, on the device; None before it was read, or of cut-up gradients."""
        return self._probe.whole(next(reversed(self.norms), None))

    def begin(self) -> None:
        """Start an optimizer step, before its first forward pass; attaches the hooks if the step is measured."""
        self._read = {}
        if self.intake.schedule.is_due(self.steps):
            self._probe.attach()

    def read(self, optimizer: Optimizer, scale: Tensor | None = None) -> None:
        """Read the gradients of an optimizer's parameters: unscaled (or still times ``scale``), not yet clipped."""
        looks = self.is_measuring or self._every_total
        params = [param for group in optimizer.param_groups for param in group["params"]] if looks else []
        if self.is_measuring:
            self._probe.read(params, scale, Settings.of(optimizer))
        part = self._probe.total if self.is_measuring else self._probe.part_of_total(params, scale)
        self._read[id(optimizer)] = part

    def read_again(self) -> None:
        """Read the total norm as the optimizer sees it, after clipping; does nothing on an unmeasured step."""
        self._probe.read_again()

    def end(
        self, loss: Tensor | float | None = None, *, loss_scale: Tensor | None = None, skipped: bool | Tensor = False
    ) -> Snapshot | None:
        """End an optimizer step; returns the latest Snapshot that has arrived: on a CPU its own, if it was measured.

        Args:
            loss: of this step.
            loss_scale: what it was multiplied by for the backward pass, on the device.
            skipped: the optimizer did not step; a scalar that is not 0 where only the device knows.
        """
        step, self.steps, norms = self.steps, self.steps + 1, self.norms
        self.intake.traces.append(step, loss, norms if self._every_total else [], skipped)
        if self.is_measuring and (norms or self._probe.ranks):  # other ranks may have gradients where this one has none
            if self._probe.ranks:  # the sums of the last measured step tell how much room those of this one need
                self.intake.catch_up()
            self.read_again()
            self.intake.add(self._probe.finish(step, self.intake.traces, loss_scale=loss_scale, skipped=skipped))
        elif self.is_measuring:  # no gradient at all: a training step that was left out
            self._probe.detach()
        return self.intake.take(step)

    def step(
        self, optimizer: Optimizer, loss: Tensor | float | None = None, *, scaler: Any = None, **kwargs: Any
    ) -> Snapshot | None:
        """Read the gradients and step the optimizer, as ``GradScaler.step`` does; returns what :meth:`end` returns.

        Args:
            optimizer: what is stepped.
            loss: of this step, for its trace; a device scalar is not waited for.
            scaler: the ``torch.amp.GradScaler`` by which it was scaled; ``scaler.update()`` stays with you.
            **kwargs: passed on to ``optimizer.step``.
        """
        scale = LossScale(scaler, optimizer)
        if id(optimizer) not in self._read:
            scale.unscale_()
            self.read(optimizer, scale.left)
        scale.step(self.read_again, **kwargs)
        try:
            return self.end(loss, loss_scale=scale.value, skipped=scale.skipped)
        finally:  # a finding that is raised may be caught
            self.begin()

    def diagnosis(self) -> list[Diagnosis]:
        """A first, simple cause for each finding."""
        return diagnose(self.findings, self.history)

    def close(self, *, quietly: bool = False) -> None:
        """Remove all hooks and wait for the last Snapshots; what was recorded stays. ``quietly`` raises nothing."""
        self._probe.detach()
        self.intake.close(quietly=quietly)

    def __enter__(self) -> Watcher:
        self.begin()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(quietly=kind is not None)  # what is found late hides no other error

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds what was recorded and watches nothing."""
        return {**self.__dict__, "_probe": self._probe.without_model(), "_read": {}}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the step count, the findings, what detectors remember, some of the Snapshots."""
        return {"steps": self.steps, "activity": self._probe.activity.state_dict(), **self.intake.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where an earlier run stopped."""
        self.steps = self._probe.since = state["steps"]
        self._probe.activity.load_state_dict(state.get("activity", {}))
        self.intake.load_state_dict(state)


watch = Watcher  # "with gradwatch.watch(model) as watcher:" reads better than the class's name
