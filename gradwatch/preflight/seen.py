"""What the rules look at: one pass, or a short training, with what was recorded of its first pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradwatch.preflight.inputs import Scale, measure
from gradwatch.preflight.recorder import Recorder
from gradwatch.records import Finding
from gradwatch.runs import Run


@dataclass(frozen=True)
class Seen:
    """One pass.

    Attributes:
        run: its Snapshot and findings.
        recorder: what else it showed.
        batch: what it was given.
    """

    run: Run
    recorder: Recorder
    batch: Any

    @property
    def inputs(self) -> Scale | None:
        """Scale of what the first layer with weights got."""
        first = self.recorder.first
        return None if first is None else measure(first[1])

    @property
    def target(self) -> Tensor | None:
        """What a loss that measures a distance compares with; or the second half of a batch, if it is no label."""
        if self.recorder.head.distance is not None:
            return self.recorder.head.distance[1]
        pair = self.batch if isinstance(self.batch, (tuple, list)) and len(self.batch) == 2 else (None, None)
        is_score = isinstance(pair[1], Tensor) and pair[1].is_floating_point() and self.recorder.head.binary is None
        return pair[1] if is_score else None

    def findings(self, *kinds: str) -> tuple[Finding, ...]:
        """The findings of these kinds."""
        return tuple(finding for finding in self.run.findings if finding.kind in kinds)
