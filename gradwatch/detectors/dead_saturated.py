"""Units that do not react: dead ReLUs and saturated Sigmoids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.checks import require_share, require_whole
from gradwatch.records import Array, Finding, Kind, Snapshot


@dataclass(frozen=True)
class Dead:
    """More than 80 % of a ReLU's units are active for no sample, of at least 100.

    Args:
        fraction: largest healthy share of dead units in a layer.
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the fraction is not a share or the patience is not positive.

    Example:
        >>> [finding.layers for finding in Dead()(Snapshot(0, ("relu", "fc"), dead_fraction=[0.9, float("nan")]))]
        [('relu',)]

    References:
        Amazon SageMaker Debugger, rule DeadRelu: activity below 1 % in more than 50 % of a layer. A small ResNet that
        learns well loses 75 % of its stem's channels in the first steps (tests/benchmarks/detection, half "develop").
    """

    needs: ClassVar[tuple[str, ...]] = ("units", "updates")
    fraction: float = 0.8
    patience: int = 5
    harm_after: ClassVar[int] = 50

    def __post_init__(self) -> None:
        require_share(self, fraction=self.fraction)
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all dead layers."""
        dead = np.flatnonzero(snapshot.dead_fraction > self.fraction).tolist()
        if dead:
            text = "units of {} fire for no sample"
            yield _finding("dead", snapshot, dead, snapshot.dead_fraction, self.fraction, text)


@dataclass(frozen=True)
class Saturated:
    """More than half of a bounded activation's outputs lie where its slope is under 2.7 % of the steepest.

    The last activation of the network is left out: an output of 0 or 1 is what a Sigmoid at the end is there for.

    Args:
        fraction: largest healthy share of saturated outputs in a layer.
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the fraction is not a share or the patience is not positive.

    Example:
        >>> nan = float("nan")
        >>> snapshot = Snapshot(
        ...     0, ("tanh", "fc"), saturated_fraction=[0.8, nan], grad_norm=[nan, 1], grad_output_norm=[1, 1]
        ... )
        >>> [finding.layers for finding in Saturated()(snapshot)]
        [('tanh',)]

    References:
        Wardat et al., DeepDiagnosis, ICSE 2022 (2112.13993): more than 50 % of a Sigmoid's inputs beyond 5.
    """

    needs: ClassVar[tuple[str, ...]] = ("saturation", "updates")
    fraction: float = 0.5
    patience: int = 5
    harm_after: ClassVar[int] = 50
    may_come_later: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_share(self, fraction=self.fraction)
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all saturated layers."""
        learning = np.flatnonzero(~np.isnan(snapshot.grad_norm))
        last = learning[-1] if len(learning) else -1
        used = ~np.isnan(snapshot.grad_output_norm)  # a generator that was only run for the discriminator's step is not
        flat = [i for i in np.flatnonzero((snapshot.saturated_fraction > self.fraction) & used).tolist() if i < last]
        if flat:
            text = "outputs of {} lie where it is flat"
            yield _finding("saturated", snapshot, flat, snapshot.saturated_fraction, self.fraction, text)


def _finding(kind: Kind, snapshot: Snapshot, at: Sequence[int], shares: Array, healthy: float, text: str) -> Finding:
    worst = max(at, key=lambda i: shares[i])
    what = text.format(f"{snapshot.kinds[worst]} {snapshot.layers[worst]}")
    message = f"{kind} units: {shares[worst]:.0%} of the {what} (healthy: below {healthy:.0%})."
    layers = tuple(snapshot.layers[i] for i in at)
    return Finding(kind, layers, snapshot.step, float(shares[worst]), healthy, message)
