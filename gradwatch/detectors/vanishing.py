"""The gradient fades on its way to the input, or to the first time step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.checks import require_share, require_whole
from gradwatch.layer_kinds import is_gated_recurrent
from gradwatch.records import Array, Finding, Snapshot


@dataclass(frozen=True)
class Vanishing:
    """The gradient at the first layers' outputs is a tiny share of the gradient nearer to the loss.

    Layers are compared with one another. An absolute bound can't tell a converged model from a vanishing gradient.
    The norm is compared, not the root mean square: with an initialization that suits the forward pass (He's fan-in)
    it keeps its size through wide and narrow layers. The faint layers have to reach down to the first one that learns,
    so that a branch which starts at zero on purpose (ReZero, LayerScale, LoRA) is no finding.

    A layer that is called many times is compared over its calls, a recurrent network over its time steps. One with
    gates may fall by the square of the ratio: they are half shut at first, and it learns to open them.

    Args:
        ratio: largest healthy fall from the loudest later layer (or call) to this one.
        min_calls: a layer called less often is not looked at over its calls.
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when a threshold is not positive or the ratio is above 1.

    Example:
        >>> norms = [1e-7, 1e-5, 1.0]
        >>> snapshot = Snapshot(0, ("a", "b", "c"), grad_norm=norms, grad_output_norm=norms)
        >>> [finding.layers for finding in Vanishing()(snapshot)]
        [('a', 'b')]

    References:
        Zhang et al., AUTOTRAINER, ICSE 2021 (2002.02061): a first-to-last ratio under 1e-3; here at the outputs.
    """

    ratio: float = 1e-3
    min_calls: int = 5
    patience: int = 10
    harm_after: ClassVar[int] = 50

    def __post_init__(self) -> None:
        require_share(self, ratio=self.ratio)
        require_whole(self, min_calls=self.min_calls, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield what vanishes over depth, then over calls."""
        yield from self._over_depth(snapshot)
        for layer, norms in snapshot.calls.items():
            shares, kind = fall(norms), snapshot.kinds[snapshot.layers.index(layer)]
            ratio = self.ratio ** (2 if is_gated_recurrent(kind) else 1)
            if len(norms) >= self.min_calls and shares[0] < ratio:
                where = f"at the first of {snapshot.calls_as_text(layer)} of layer {layer}"
                yield self._finding(snapshot, (layer,), float(shares[0]), where, ratio)

    def _over_depth(self, snapshot: Snapshot) -> Iterator[Finding]:
        norms = snapshot.grad_output_norm
        learning = np.flatnonzero(~np.isnan(norms) & ~np.isnan(snapshot.grad_norm))
        shares = fall(norms[learning])
        faint = int(np.argmin(shares < self.ratio)) if len(shares) else 0  # how many from the first one on
        # One layer alone that the next cuts off is where a branch starts (LoRA), not a fall over depth.
        if faint > 1 or (faint and norms[learning[0]] > self.ratio**0.5 * norms[learning[1]]):
            layers = tuple(snapshot.layers[i] for i in learning[:faint])
            yield self._finding(snapshot, layers, float(shares[0]), f"at the output of layer {layers[0]}", self.ratio)

    def _finding(self, snapshot: Snapshot, layers: tuple[str, ...], value: float, where: str, ratio: float) -> Finding:
        message = (
            f"vanishing gradient: {where} it is {value:.1e} times the gradient nearer to the loss (healthy: above "
            f"{ratio:g})."
        )
        return Finding("vanishing", layers, snapshot.step, value, ratio, message)


def fall(norms: Array) -> Array:
    """Return each norm as a share of the largest at or after it; 1 for the last, and where that is not finite.

    Example:
        >>> fall(np.array([1.0, 4.0, 2.0]))
        array([0.25, 1.  , 1.  ])
    """
    loudest = np.maximum.accumulate(norms[::-1])[::-1]
    usable = np.isfinite(loudest) & (loudest > 0)
    shares: Array = np.divide(norms, loudest, out=np.ones_like(norms), where=usable)
    return shares
