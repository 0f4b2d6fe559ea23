"""The gradient fades on its way to the input, or to the first time step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from gradwatch.checks import require_share, require_whole
from gradwatch.layer_kinds import is_gated_recurrent
from gradwatch.paths import Paths
from gradwatch.records import Array, Finding, Snapshot

_MOST = 0.5  # of the layers of a network
_LARGE = 0.25  # of the layers: of several networks (an actor and a critic) one that is worth a word alone


@dataclass(frozen=True)
class Vanishing:
    """The gradient at the first layers' outputs is a tiny share of the gradient nearer to the loss.

    Layers are compared with one another. An absolute bound can't tell a converged model from a vanishing gradient.
    The norm is compared, not the root mean square: with an initialization that suits the forward pass (He's fan-in)
    it keeps its size through wide and narrow layers. The faint layers have to reach down to the first ones that learn,
    so that a branch which starts at zero on purpose (ReZero, LayerScale, LoRA) is no finding.

    A layer is compared with those on its way to the loss, by the way on which the gradient fades least. It is a finding
    where no good path is left from the loss to the inputs: not for a faint branch at the side of a sound network.

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

    needs: ClassVar[tuple[str, ...]] = ("updates",)
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
        for layer, norms in snapshot.recurrent_calls():
            shares, kind = fall(norms), snapshot.kinds[snapshot.layers.index(layer)]
            ratio = self.ratio ** (2 if is_gated_recurrent(kind) else 1)
            if len(norms) >= self.min_calls and shares[0] < ratio:
                where = f"at the first of {snapshot.calls_as_text(layer)} of layer {layer}"
                yield self._finding(snapshot, (layer,), float(shares[0]), where, ratio)

    def _over_depth(self, snapshot: Snapshot) -> Iterator[Finding]:
        norms = snapshot.grad_output_norm
        learning = np.flatnonzero(~np.isnan(norms) & ~np.isnan(snapshot.grad_norm))
        paths, norms = Paths.of(snapshot, learning.tolist()), norms[learning]
        shares = paths.shares(norms)
        found = [(part, *self._faint(paths, part, norms, shares)) for part in paths.parts]
        is_fault_of_all = all(faint for _, _, faint in found)
        for part, start, faint in found:
            if faint and (is_fault_of_all or len(part) >= _LARGE * len(learning)):
                layers = tuple(snapshot.layers[learning[i]] for i in faint)
                where = f"at the output of layer {snapshot.layers[learning[start]]}"
                yield self._finding(snapshot, layers, float(shares[start]), where, self.ratio)

    def _faint(self, paths: Paths, part: Sequence[int], norms: Array, shares: Array) -> tuple[int, list[int]]:
        """Return the start with most of the gradient, and the faint layers behind all starts; none if one path is good.

        Where the faint layers are half of the layers or more, a good path is one beside the network, and no way around.
        """
        is_faint = shares < self.ratio
        heads = [i for i in part if i not in paths.fed]
        cut = {i for i in heads if is_faint[i] and self._starts_a_branch(paths, i, norms, is_faint)}
        fed = {other for i in part if i not in cut for other in paths.followers[i]}
        starts = [i for i in part if i not in fed and i not in cut]
        bad = [i for i in starts if is_faint[i]]
        faint, waiting = set(bad), list(bad)
        while waiting:
            more = [i for i in paths.followers[waiting.pop()] if is_faint[i] and i not in faint]
            faint.update(more)
            waiting += more
        if not bad or (len(bad) < len(starts) and len(faint) < _MOST * len(part)):
            return -1, []
        return max(bad, key=lambda i: float(shares[i])), sorted(faint)

    def _starts_a_branch(self, paths: Paths, start: int, norms: Array, is_faint: npt.NDArray[np.bool_]) -> bool:
        """Return True for one layer alone that the next cuts off: a branch starts there (LoRA), no fall over depth."""
        others = list(paths.followers[start])
        return not is_faint[others].any() and bool(norms[start] <= self.ratio**0.5 * norms[others].min(initial=np.inf))

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
