"""The gradient grows on its way to the input, or is huge altogether."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from gradwatch.checks import require_positive, require_whole
from gradwatch.paths import Paths
from gradwatch.records import Array, Finding, Snapshot


@dataclass(frozen=True)
class Exploding:
    """The gradient grows by ``growth`` through the layers (or calls), or its total norm passes ``total_norm``.

    A layer is compared with the end of its way to the loss, and not with layers on other ways: an actor is no part of
    the critic beside it. Growth does no harm where the gradient is small: the layer's gradient must also outweigh its
    weights.

    Args:
        growth: largest healthy rise from the faintest later layer (or call) to this one.
        grad_to_weight: growth counts only in layers whose gradient norm is above this multiple of the weight norm.
        total_norm: largest healthy norm of all gradients together.
        min_calls: a layer called less often is not looked at over its calls.
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when a threshold is not positive.

    Example:
        >>> norms = [1e7, 1e3, 1.0]
        >>> snapshot = Snapshot(0, ("a", "b", "c"), grad_norm=norms, weight_norm=[1.0] * 3, grad_output_norm=norms)
        >>> [finding.layers for finding in Exploding()(snapshot)]
        [('a',)]

    References:
        Ben Braiek and Khomh, TheDeepChecker, 2022 (2204.00694): a mean gradient above 1e6; here it is the norm, which
        is larger. AUTOTRAINER's ratio of 70 alarms on healthy tanh networks; 1e3 mirrors ``Vanishing``.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    growth: float = 1e3
    grad_to_weight: float = 1.0
    total_norm: float = 1e6
    min_calls: int = 5
    patience: int = 2
    harm_after: ClassVar[int] = 20
    only_early: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self, growth=self.growth, grad_to_weight=self.grad_to_weight, total_norm=self.total_norm)
        require_whole(self, min_calls=self.min_calls, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield what explodes over depth, over calls and in total."""
        heavy = snapshot.grad_to_weight_ratio > self.grad_to_weight
        yield from self._over_depth(snapshot, heavy)
        for layer, norms in snapshot.recurrent_calls():
            rise = rises(norms)
            if len(norms) >= self.min_calls and rise[0] > self.growth and heavy[snapshot.layers.index(layer)]:
                where = f"over the {snapshot.calls_as_text(layer)} of layer {layer}"
                yield _finding(snapshot, (layer,), float(rise[0]), self.growth, f"it grows {rise[0]:.1e}x {where}")
        if np.isfinite(snapshot.total_norm) and snapshot.total_norm > self.total_norm:
            known = not np.isnan(snapshot.grad_norm).all()
            largest = snapshot.layers[int(np.nanargmax(snapshot.grad_norm))] if known else "grad_norm_total"
            what = f"its total norm is {snapshot.total_norm:.1e}" + (f", largest in layer {largest}" if known else "")
            yield _finding(snapshot, (largest,), snapshot.total_norm, self.total_norm, what)

    def _over_depth(self, snapshot: Snapshot, heavy: npt.NDArray[np.bool_]) -> Iterator[Finding]:
        learning = np.flatnonzero(~np.isnan(snapshot.grad_output_norm) & ~np.isnan(snapshot.grad_norm))
        rise = Paths.of(snapshot, learning.tolist()).multiples(snapshot.grad_output_norm[learning])
        loud = (rise > self.growth) & heavy[learning]
        if loud.any():
            layers = tuple(snapshot.layers[i] for i in learning[loud])
            worst = float(rise[loud].max())
            what = f"it grows {worst:.1e}x on its way back to layer {layers[0]}"
            yield _finding(snapshot, layers, worst, self.growth, what)


def _finding(snapshot: Snapshot, layers: tuple[str, ...], value: float, threshold: float, what: str) -> Finding:
    message = f"exploding gradient: {what} (healthy: below {threshold:g})."
    return Finding("exploding", layers, snapshot.step, value, threshold, message)


def rises(norms: Array) -> Array:
    """Return each norm as a multiple of the last one; 1 for exact zeros and non-finite values.

    The last, and not the smallest: a branch that starts near zero (ReZero, LoRA, a zero-initialized BatchNorm) is
    faint inside, and every layer before it would be loud.

    Example:
        >>> rises(np.array([8.0, 4.0, 2.0]))
        array([4., 2., 1.])
    """
    usable = (norms > 0) & np.isfinite(norms)
    result = np.ones(len(norms))
    result[usable] = norms[usable] / norms[usable][-1:]
    return result
