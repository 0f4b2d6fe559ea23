"""Parameters that should learn and can't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradwatch.detectors.thresholds import require_whole
from gradwatch.records import Finding, Snapshot


@dataclass(frozen=True)
class Stalled:
    """Parameters that the optimizer holds and that require a gradient get none, or one that is exactly zero.

    A detached branch, a module that is not used, a head that gives no gradient (a softmax over one unit).

    Args:
        patience: measured steps in a row until it is a finding: a head that is used in one batch out of several, and a
            branch that starts at zero (ReZero, LoRA), are healthy.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(0, (), params=("a.weight", "b.weight"), param_grad_norm=[0.0, 1.0])
        >>> [finding.layers for finding in Stalled()(snapshot)]
        [('a.weight',)]

    References:
        No published rule; the default is what a head drawn with probability 1/2 misses in one of 1,000 starts.
    """

    patience: int = 10

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all stalled parameters."""
        norms = np.asarray(snapshot.param_grad_norm)
        stalled = np.flatnonzero(np.isnan(norms) | (norms == 0))
        if len(stalled):
            names = tuple(snapshot.params[i] for i in stalled)
            none = int(np.isnan(norms[stalled]).sum())
            message = (
                f"stalled: {len(names)} of {len(norms)} parameters get no gradient ({none} None, {len(names) - none} "
                f"exactly zero), among them {', '.join(names[:3])}. Look for a detach(), an unused module or a head "
                f"without a gradient; freeze what should not learn."
            )
            yield Finding("stalled", names, snapshot.step, float(len(names)), 0.0, message)
