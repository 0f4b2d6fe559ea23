"""The harm of a trouble: the loss decides if a finding is worth a word, when, and until when."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gradwatch.layer_kinds import is_gated_recurrent
from gradwatch.progress import DOES_WELL, Judgement, Learning
from gradwatch.records import Detector, Finding, Snapshot

Verdict = Literal["hurts", "waits", "harmless"]

# tests/benchmarks/harm/thresholds.py makes the table of what other values would do; docs/detection.md has it.
# Share of the first losses that is gone in a run that does well, for units that go to their bounds after the first
# steps, in layers that go on moving: the critics of PPO and A2C on CartPole do (tests/benchmarks/ecosystem).
_WELL_LATER = 0.25
_ROSE = 3.0  # times the first losses: more than a batch of one sample makes of a loss that stays
_JUMP = 5  # losses, of which the median counts: where an actor falls, the critic's loss jumps for a few steps
_EARLY = 20  # steps: what begins later is not owed to the start
_MILD = 10.0  # times the threshold: normalization frees the scale of what stands before it, by so much
_FIRST = 5  # steps: what begins in them is owed to the start, and a recurrence without gates has none to open
_GATES_OPEN = 150  # steps that a GRU over 59 time steps takes to open its gates
_RESTS = 1e-6  # update over weight: a layer that moves by less learns nothing in 10,000 steps; 1e-3 is usual


class Harm:
    """Takes in the losses of a run, and judges whether a trouble does harm.

    A detector says so itself where its findings need harm: ``harm_after`` is the number of steps that a trouble has to
    show it, ``only_early`` that one which begins later, or a strong one over a cell's calls, is a finding at once, and
    ``may_come_later`` that one which begins later comes with what the network learns, as units go to their bounds. NaN,
    Inf, and five losses of three times the first ones are harm at once. A loss that has come down by half beyond its
    noise is none, for as long as it stays there. A loss that measures no progress shows none either: one that was
    negative, that of several optimizers, or, for units that go to their bounds later, one that was lower before. But
    where the layers in front of the trouble rest, the others learn without them, however far that brings the loss: the
    bias of a last layer alone takes most of it where targets are large.

    A gradient that explodes may do so on huge losses, which fall by half without good: this lets off only mild ones.

    Example:
        >>> class Dull:
        ...     harm_after = 50
        >>> harm, finding = Harm(), Finding("dull", ("relu",), 3, 0.9, 0.8, "it is dull")
        >>> harm.add(Snapshot(9, ("relu",), trace_step=range(10), trace_loss=np.full(10, 2.3)))
        >>> harm.of(Dull(), finding, Snapshot(9, ("relu",))), harm.of(Dull(), finding, Snapshot(60, ("relu",)))
        ('waits', 'hurts')
        >>> harm.add(Snapshot(60, ("relu",), trace_step=range(10, 61), trace_loss=np.linspace(2.3, 0.1, 51)))
        >>> harm.of(Dull(), finding, Snapshot(60, ("relu",)))
        'harmless'
    """

    def __init__(self) -> None:
        self._learning = Learning()
        self._judged: Judgement | None = None
        self._is_broken = self._was_negative = False
        self._latest: deque[float] = deque(maxlen=_JUMP)
        self._cells: set[str] = set()  # layers that are called many times, in the last Snapshot with any

    def add(self, snapshot: Snapshot) -> None:
        """Take in the losses of a Snapshot."""
        losses = snapshot.trace_loss if len(snapshot.trace_loss) else np.array([snapshot.loss])
        self._learning.add(snapshot)
        self._judged = None
        self._cells = set(snapshot.calls) or self._cells
        self._is_broken = self._is_broken or bool(np.isinf(losses).any())
        self._was_negative = self._was_negative or bool((losses < 0).any())
        self._latest.extend(losses[~np.isnan(losses)].tolist())

    @property
    def judged(self) -> Judgement:
        """The course of the loss so far."""
        if self._judged is None:
            self._judged = self._learning.progress.judge()
        return self._judged

    def of(self, detector: Detector, finding: Finding, snapshot: Snapshot, *, is_last: bool = False) -> Verdict:
        """Return the verdict on a finding at a step; at the last one nothing waits."""
        after = getattr(detector, "harm_after", 0)
        only_early = getattr(detector, "only_early", False)
        over_calls = set(finding.layers) <= self._cells
        is_late = finding.step >= _EARLY
        is_mild = _is_mild(finding)
        # No norm takes out the scale of a recurrence.
        if not after or self._is_broken or (only_early and not (is_mild if over_calls else not is_late)):
            return "hurts"
        judged, is_measure = self.judged, self._measures_progress
        comes_later = is_late and getattr(detector, "may_come_later", False)
        if comes_later and judged.course == "no loss":  # lower before than now, as returns grow
            is_measure = False
        if not judged.steps or (is_measure and self._has_jumped(judged)):
            return "hurts"
        does_well = judged.fell_by(_WELL_LATER if comes_later else DOES_WELL)
        if only_early:
            if is_mild and does_well:
                return "harmless"
        elif (does_well or not is_measure) and not _rests(finding, snapshot):
            return "harmless"
        may_pass = is_mild or finding.step >= _FIRST
        had_no_chance = (only_early and is_mild) or (over_calls and may_pass)
        if over_calls:
            after = _GATES_OPEN if _has_gates(finding, snapshot) else after if may_pass else 0
        if snapshot.step - finding.step >= after:
            return "hurts"
        if is_last:
            return "harmless" if had_no_chance and judged.course == "learns" else "hurts"
        return "waits"

    @property
    def _measures_progress(self) -> bool:
        return not self._was_negative and self._learning.is_one_loss

    def _has_jumped(self, judged: Judgement) -> bool:
        return bool(self._latest) and float(np.median(self._latest)) > _ROSE * abs(judged.start)

    def has_risen(self) -> bool:
        """Return True if the loss is no longer finite, or higher than at the start, beyond its noise."""
        judged = self.judged
        return self._is_broken or judged.now - judged.start > 3 * judged.noise

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        plain = {"broken": self._is_broken, "negative": self._was_negative, "latest": list(self._latest)}
        return {"learning": self._learning.state_dict(), **plain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._learning.load_state_dict(state["learning"])
        self._judged = None
        self._is_broken, self._was_negative = bool(state["broken"]), bool(state["negative"])
        self._latest = deque(state["latest"], maxlen=_JUMP)


def _has_gates(finding: Finding, snapshot: Snapshot) -> bool:
    kinds = dict(zip(snapshot.layers, snapshot.kinds, strict=True))
    return all(is_gated_recurrent(kinds.get(layer, "")) for layer in finding.layers)


def _is_mild(finding: Finding) -> bool:
    """Return True for a value within ten times its threshold, on either side."""
    if not finding.value > 0 < finding.threshold:
        return False
    return max(finding.value / finding.threshold, finding.threshold / finding.value) < _MILD


def _rests(finding: Finding, snapshot: Snapshot) -> bool:
    """Return True if no trained layer up to the last one of a finding is known to move.

    Example:
        >>> finding = Finding("dead", ("relu",), 3, 1.0, 0.8, "it is dead")
        >>> _rests(finding, Snapshot(9, ("fc", "relu", "head"), update_to_weight=[0.0, float("nan"), 1e-3]))
        True
    """
    at = [i for i, layer in enumerate(snapshot.layers) if layer in finding.layers]
    if not at:
        return False
    updates, gradients = snapshot.update_to_weight[: at[-1] + 1], snapshot.grad_norm[: at[-1] + 1]
    moved = np.where(gradients == 0, 0.0, updates)  # a decay of the weights moves them too
    known = moved[np.isfinite(moved)]
    return bool(len(known) and known.max() < _RESTS)
