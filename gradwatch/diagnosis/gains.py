"""Where the gradient is lost or blown up: the gain of each kind of layer."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from gradwatch.records import Snapshot

BOUNDED = {"Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh", "LogSigmoid", "Softmax", "LogSoftmax"}


def gain_by_kind(snapshot: Snapshot) -> dict[str, tuple[int, float]]:
    """Kind of layer -> how many have a gain, and their geometric mean gain.

    Example:
        >>> gain_by_kind(Snapshot(0, ("a", "b", "c"), kinds=("Sigmoid", "Sigmoid", "Linear"), gain=[0.2, 0.2, 0.6]))
        {'Sigmoid': (2, 0.2), 'Linear': (1, 0.6)}
    """
    gains: dict[str, list[float]] = defaultdict(list)
    for kind, gain in zip(snapshot.kinds, snapshot.gain.tolist(), strict=True):
        if gain > 0 and np.isfinite(gain):
            gains[kind].append(gain)
    return {kind: (len(values), round(float(np.exp(np.mean(np.log(values)))), 4)) for kind, values in gains.items()}


def gains_as_text(snapshot: Snapshot) -> str:
    """The gains in a sentence, the smallest first.

    Example:
        >>> gains_as_text(Snapshot(0, ("a", "b"), kinds=("Sigmoid", "Linear"), gain=[0.2, 0.6]))
        'The Sigmoid multiplies the gradient by 0.2, the Linear by 0.6.'
    """
    gains = sorted(gain_by_kind(snapshot).items(), key=lambda item: item[1][1])
    if not gains:
        return "No gain could be measured."
    parts = [f"{_counted(kind, count)} by {gain:.2g}" for kind, (count, gain) in gains]
    sentence = ", ".join(parts).replace(" by ", " multiplies the gradient by ", 1)
    return sentence[0].upper() + sentence[1:] + "."


def _counted(kind: str, count: int) -> str:
    return f"the {kind}" if count == 1 else f"each of the {count} {kind}s"
