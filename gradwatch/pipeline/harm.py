"""The harm of a trouble: the loss decides if a finding is worth a word, when, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gradwatch.progress import Progress
from gradwatch.records import Detector, Finding, Snapshot

Verdict = Literal["hurts", "waits", "harmless"]

# Share of the first losses that is gone in a run that does well. Half: of the programs of tests/benchmarks/detection
# (half "develop") and tests/benchmarks/blind that do harm and have such a finding, the best but one loses 0.44.
_WELL = 0.5
_ROSE = 3.0  # times the first losses: more than a batch of one sample makes of a loss that stays
_EARLY = 20  # steps: what begins later is not owed to the start
_MILD = 10.0  # times the threshold: normalization frees the scale of what stands before it, by so much
_GATES_OPEN = 150  # steps that a GRU over 59 time steps takes to open its gates


class Harm:
    """Takes in the losses of a run, and judges whether a trouble does harm.

    A detector says so itself where its findings need harm: ``harm_after`` is the number of steps that a trouble has to
    show it, and ``only_early`` that one which begins later is a finding at once. NaN, Inf, and a loss that is three
    times the first ones are harm at once. A loss that has come down by half beyond its noise is none, for as long as it
    stays there; nor is a loss that measures no progress (negative, or lower before than now) a sign of harm.

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
        self._progress = Progress()
        self._is_broken = False
        self._latest = float("nan")

    def add(self, snapshot: Snapshot) -> None:
        """Take in the losses of a Snapshot."""
        losses = snapshot.trace_loss if len(snapshot.trace_loss) else np.array([snapshot.loss])
        self._progress.add(losses)
        self._is_broken = self._is_broken or bool(np.isinf(losses).any())
        known = losses[~np.isnan(losses)]
        self._latest = float(np.median(known[-2:])) if len(known) else self._latest

    def of(self, detector: Detector, finding: Finding, snapshot: Snapshot, *, is_last: bool = False) -> Verdict:
        """Return the verdict on a finding at a step; at the last one nothing waits."""
        after = getattr(detector, "harm_after", 0)
        late = finding.step >= _EARLY and getattr(detector, "only_early", False)
        if not after or late or self._is_broken:
            return "hurts"
        judged = self._progress.judge()
        if not judged.steps or self._latest > _ROSE * abs(judged.start):
            return "hurts"
        falls = judged.start - judged.now
        exploding = getattr(detector, "only_early", False)
        is_mild = not exploding or finding.value < _MILD * finding.threshold
        if judged.course == "learns" and falls > _WELL * abs(judged.start) and is_mild:
            return "harmless"
        if judged.course == "no loss" and not exploding:
            return "harmless"
        if snapshot.calls and set(finding.layers) <= set(snapshot.calls) and not exploding:
            after = max(after, _GATES_OPEN)
        if snapshot.step - finding.step >= after:
            return "hurts"
        if is_last:  # it had no chance to hurt
            return "harmless" if exploding and is_mild and judged.course == "learns" else "hurts"
        return "waits"

    def has_risen(self) -> bool:
        """Return True if the loss is no longer finite, or higher than at the start, beyond its noise."""
        judged = self._progress.judge()
        return self._is_broken or judged.now - judged.start > 3 * judged.noise

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"progress": self._progress.state_dict(), "broken": self._is_broken, "latest": self._latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._progress.load_state_dict(state["progress"])
        self._is_broken, self._latest = bool(state["broken"]), float(state["latest"])
