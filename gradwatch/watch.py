"""The pipeline, free of any trainer: probe -> detectors -> findings, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.detectors import Ledger, default_detectors
from gradwatch.detectors.announce import OnFinding, announce, require_on_finding
from gradwatch.diagnosis import diagnose
from gradwatch.probe.history import History
from gradwatch.probe.parameters import total_gradient_norm
from gradwatch.probe.schedule import Schedule, require_count
from gradwatch.probe.snapshot import Probe
from gradwatch.probe.trace import Trace
from gradwatch.records import Detector, Diagnosis, Finding, Snapshot


class Watcher:
    """Watches a model's optimizer steps: which are measured, what they held, what is wrong.

    A loop of your own, in plain PyTorch or Fabric, needs ``with`` and :meth:`step`. A loop that clips calls
    :meth:`read` before the clip. A trainer calls the parts: :meth:`begin` before the forward pass, :meth:`read` before
    the optimizer's step, :meth:`end` after it.

    Attributes:
        findings: all Findings so far, open and closed, in the order they opened.
        history: the Snapshots; when there are more than ``history_size``, every second one is let go.
        steps: how many optimizer steps have ended.
        should_stop: set when a finding opened and ``on_finding`` is ``"stop"``.

    Args:
        model: any module.
        every_n_steps: measure every so many optimizer steps.
        dense_steps: measure each of the first so many steps, in which most faults show.
        detectors: objects or functions; None takes all with their defaults.
        include: patterns of the layers to watch; None watches all.
        exclude: patterns of the layers to leave out.
        on_finding: ``"warn"``, ``"stop"``, ``"raise"``, or a function that is called with the Finding that opens.
        total_norm_every_step: keep the total gradient norm of unmeasured steps too; costs one fused pass a step.
        history_size: how many Snapshots are kept.

    Raises:
        ValueError: for a number out of range, an unknown ``on_finding``, or a pattern that matches no layer.
        TypeError: for a detector that can't be called.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model) as watcher:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         loss = model(torch.ones(4, 2)).square().mean()
        ...         loss.backward()
        ...         snapshot = watcher.step(optimizer, loss)
        >>> len(watcher.history), watcher.findings
        (3, [])
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
    ) -> None:
        self.history = History(require_count("history_size", history_size, least=2))
        self.steps = 0
        self.should_stop = False
        self._schedule = Schedule(every_n_steps, dense_steps)
        self._ledger = Ledger(default_detectors() if detectors is None else detectors)
        self._on_finding = require_on_finding(on_finding)
        self._every_total = total_norm_every_step
        self._probe = Probe(model, include, exclude)
        self._losses, self._totals = Trace(), Trace()
        self._read: dict[int, Tensor | None] = {}  # optimizers read in this step, and their total norms

    @property
    def findings(self) -> list[Finding]:
        """All Findings so far."""
        return self._ledger.findings

    @property
    def is_measuring(self) -> bool:
        """Whether the step under way is measured."""
        return self._probe.is_attached

    @property
    def _norms(self) -> list[Tensor]:
        return [norm for norm in self._read.values() if norm is not None]

    @property
    def total_norm(self) -> Tensor | None:
        """Total gradient norm of the step under way, on the device; None before it was read."""
        return next(reversed(self._norms), None)

    def begin(self) -> None:
        """Start an optimizer step, before its first forward pass; attaches the hooks if the step is measured."""
        self._read = {}
        if self._schedule.is_due(self.steps):
            self._probe.attach()

    def read(self, optimizer: Optimizer) -> None:
        """Read the gradients of an optimizer's parameters: unscaled, accumulated, not yet clipped."""
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if self.is_measuring:
            self._probe.read(params)
            self._read[id(optimizer)] = self._probe.total
        else:
            self._read[id(optimizer)] = total_gradient_norm(params) if self._every_total else None

    def read_again(self) -> None:
        """Read the total norm as the optimizer sees it, after clipping; does nothing on an unmeasured step."""
        if self.is_measuring:
            self._probe.read_again()

    def end(
        self, loss: Tensor | float | None = None, *, loss_scale: Tensor | None = None, skipped: bool = False
    ) -> Snapshot | None:
        """End an optimizer step; returns its Snapshot if it was measured.

        Raises:
            GradientError: when a finding opens and ``on_finding`` is ``"raise"``.
        """
        step, self.steps = self.steps, self.steps + 1
        if loss is not None:
            self._losses.append(step, torch.as_tensor(loss).detach())
        norms = self._norms
        if self._every_total and norms and not skipped:  # a loss scaler's search is no trouble
            self._totals.append(step, torch.linalg.vector_norm(torch.stack(norms)))
        if not self.is_measuring or not norms:  # no gradient at all: a training step that was left out
            self._probe.detach()
            return None
        self._probe.read_again()
        snapshot = self._probe.snapshot(step, self._losses, self._totals, loss_scale=loss_scale, skipped=skipped)
        self._take(snapshot)
        return snapshot

    def _take(self, snapshot: Snapshot) -> None:
        self.history.add(snapshot)
        opened = self._ledger.update(snapshot)
        self._schedule.took(snapshot.step, suspicious=bool(opened) or self._ledger.is_suspicious)
        for finding in opened:
            self.should_stop |= announce(finding, self._on_finding)

    def step(self, optimizer: Optimizer, loss: Tensor | float | None = None, **kwargs: Any) -> Snapshot | None:
        """Read the gradients and step the optimizer, as ``GradScaler.step`` does; returns the Snapshot, if measured.

        Args:
            optimizer: what is stepped.
            loss: the loss of this step, for its trace; a device scalar is not waited for.
            **kwargs: passed on to ``optimizer.step``.
        """
        if id(optimizer) not in self._read:
            self.read(optimizer)
        optimizer.step(**kwargs)
        try:
            return self.end(loss)
        finally:  # a finding that is raised may be caught
            self.begin()

    def diagnosis(self) -> list[Diagnosis]:
        """A first, simple cause for each finding."""
        return diagnose(self.findings, self.history)

    def close(self) -> None:
        """Remove all hooks; what was recorded stays."""
        self._probe.detach()

    def __enter__(self) -> Watcher:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the step count and the findings."""
        return {"steps": self.steps, "ledger": self._ledger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where an earlier run stopped."""
        self.steps = state["steps"]
        self._ledger.load_state_dict(state["ledger"])


watch = Watcher
"""``with gradwatch.watch(model) as watcher:`` reads better than the class's name."""
