"""Where the gradient is lost or blown up: the gain of each kind of layer, and what of it the weights contribute."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from gradwatch.records import Array, Snapshot

BOUNDED = {"Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh", "LogSigmoid", "Softmax", "LogSoftmax"}


@dataclass(frozen=True)
class Split:
    """Who takes the gradient: shares, on a log scale, of all that is lost on the way back.

    Attributes:
        activations: what bounded activations take, whose slope is below 1.
        weights: what weights take, ReLUs counted in, which halve the energy and want weights that double it.
    """

    activations: float
    weights: float


def split(snapshot: Snapshot) -> Split:
    """How the loss of the gradient divides between activations and weights; both 0 where nothing is lost.

    Example:
        >>> split(Snapshot(0, ("a", "b"), kinds=("Sigmoid", "Linear"), gain=[0.1, 1.0]))
        Split(activations=1.0, weights=0.0)
    """
    usable = (snapshot.gain > 0) & np.isfinite(snapshot.gain)
    logs = np.minimum(np.log(np.where(usable, snapshot.gain, 1.0)), 0)
    bounded = np.array([kind in BOUNDED for kind in snapshot.kinds], bool)
    taken, whole = -float(logs[bounded].sum()), -float(logs.sum())
    return Split(taken / whole, 1 - taken / whole) if whole > 0 else Split(0.0, 0.0)


def gain_by_kind(snapshot: Snapshot) -> dict[str, tuple[int, float]]:
    """Kind of layer -> how many have a gain, and their geometric mean gain.

    Example:
        >>> gain_by_kind(Snapshot(0, ("a", "b", "c"), kinds=("Sigmoid", "Sigmoid", "Linear"), gain=[0.2, 0.2, 0.6]))
        {'Sigmoid': (2, 0.2), 'Linear': (1, 0.6)}
    """
    return _by_kind(snapshot, snapshot.gain)


def _by_kind(snapshot: Snapshot, column: Array) -> dict[str, tuple[int, float]]:
    gains: dict[str, list[float]] = defaultdict(list)
    for kind, gain in zip(snapshot.kinds, column.tolist(), strict=True):
        if gain > 0 and np.isfinite(gain):
            gains[kind].append(gain)
    return {kind: (len(values), round(float(np.exp(np.mean(np.log(values)))), 4)) for kind, values in gains.items()}


def gains_as_text(snapshot: Snapshot) -> str:
    """The gains in a sentence, the smallest first, and what the weights alone would make of it.

    Example:
        >>> kinds, weights = ("Sigmoid", "Linear"), [np.nan, 0.58]
        >>> gains_as_text(Snapshot(0, ("a", "b"), kinds=kinds, gain=[0.2, 0.6], weight_gain=weights))
        'The Sigmoid multiplies the gradient by 0.2, the Linear by 0.6 (its weights alone: 0.58).'
    """
    gains = sorted(gain_by_kind(snapshot).items(), key=lambda item: item[1][1])
    if not gains:
        return "No gain could be measured."
    alone = _by_kind(snapshot, snapshot.weight_gain)
    parts = [f"{_counted(kind, count)} by {gain:.2g}{_of_weights(kind, count, alone)}" for kind, (count, gain) in gains]
    sentence = ", ".join(parts).replace(" by ", " multiplies the gradient by ", 1)
    return sentence[0].upper() + sentence[1:] + "."


def _counted(kind: str, count: int) -> str:
    return f"the {kind}" if count == 1 else f"each of the {count} {kind}s"


def _of_weights(kind: str, count: int, alone: dict[str, tuple[int, float]]) -> str:
    if kind not in alone:
        return ""
    return f" ({'its' if count == 1 else 'their'} weights alone: {alone[kind][1]:.2g})"
