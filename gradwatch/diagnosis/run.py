"""What a run has to say: its findings and Snapshots, and the questions that several rules ask of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradwatch.records import Array, Finding, Snapshot

EARLY = 20  # steps: what is wrong so soon is a matter of the initialization and the data, not of training
LARGE_STEP = (
    0.1  # of the weights: a healthy step is about 1e-3 of them (Karpathy), ten to a hundred times as much is not
)
LARGE_INPUT = 20.0  # RMS; standardized data have 1, images in 0 to 255 about 130


@dataclass(frozen=True)
class Run:
    """A run so far.

    Args:
        findings: what the detectors found.
        history: the Snapshots that are still kept, in the order of their steps.
    """

    findings: tuple[Finding, ...]
    history: tuple[Snapshot, ...]

    def of(self, *kinds: str) -> tuple[Finding, ...]:
        """The findings of some kinds."""
        return tuple(finding for finding in self.findings if finding.kind in kinds)

    def near(self, finding: Finding) -> Snapshot:
        """The Snapshot nearest to the step where a finding began."""
        return min(self.history, key=lambda snapshot: abs(snapshot.step - finding.step))

    @property
    def first(self) -> Snapshot:
        """The first Snapshot."""
        return self.history[0]

    @property
    def last(self) -> Snapshot:
        """The last Snapshot."""
        return self.history[-1]

    @cached_property
    def early(self) -> tuple[Snapshot, ...]:
        """Those of the first steps."""
        return tuple(snapshot for snapshot in self.history if snapshot.step < self.first.step + EARLY)

    @cached_property
    def losses(self) -> Array:
        """The losses that are known, in the order of their steps; ``inf`` where one was NaN."""
        losses = [np.asarray(snapshot.trace_loss) for snapshot in self.history]
        known = np.concatenate(losses) if losses else np.empty(0)
        return known[~np.isnan(known)]

    @cached_property
    def start_loss(self) -> float:
        """The first loss; NaN where there is none. The second is that of another network, after a step too large."""
        return float(self.losses[0]) if len(self.losses) else float("nan")

    @cached_property
    def end_loss(self) -> float:
        """Median of the last tenth of the losses, of five at least."""
        count = max(5, len(self.losses) // 10)
        return float(np.median(self.losses[-count:])) if len(self.losses) else float("nan")

    @property
    def is_stuck(self) -> bool:
        """Whether the loss has fallen by less than a twentieth of its size, after the first steps."""
        if len(self.losses) <= EARLY:
            return False
        start = min(self.start_loss, float(np.median(self.losses[:5])))
        return not self.end_loss < start - 0.05 * abs(start)

    @cached_property
    def step_to_weight(self) -> float:
        """The optimizer's step over the weights: the median over the layers, the largest of the first steps."""
        return max((_median(snapshot.step_to_weight) for snapshot in self.early), default=float("nan"))

    @property
    def input_rms(self) -> float:
        """Of the first Snapshot."""
        return self.first.input_rms if self.history else float("nan")

    def kinds(self) -> Iterator[tuple[str, str]]:
        """Layer and kind, in network order."""
        yield from zip(self.last.layers, self.last.kinds, strict=True)


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0
