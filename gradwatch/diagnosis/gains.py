"""Where the gradient is lost or blown up: what each kind of layer does, and what its weights alone would do."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from gradwatch.records import Array, Snapshot

BOUNDED = {"Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh", "LogSigmoid", "Softmax", "LogSoftmax"}
NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "LayerNorm", "GroupNorm", "RMSNorm",
         "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"}  # fmt: skip


def gain_by_kind(snapshot: Snapshot, column: str = "gain") -> dict[str, tuple[int, float]]:
    """Kind of layer -> how many have a gain, and their geometric mean gain.

    Example:
        >>> gain_by_kind(Snapshot(0, ("a", "b", "c"), kinds=("Sigmoid", "Sigmoid", "Linear"), gain=[0.2, 0.2, 0.6]))
        {'Sigmoid': (2, 0.2), 'Linear': (1, 0.6)}
    """
    gains: dict[str, list[float]] = defaultdict(list)
    for kind, gain in zip(snapshot.kinds, getattr(snapshot, column).tolist(), strict=True):
        if gain > 0 and np.isfinite(gain):
            gains[kind].append(gain)
    return {kind: (len(values), round(_mean(np.array(values)), 4)) for kind, values in gains.items()}


def gains_as_text(snapshot: Snapshot) -> str:
    """The gains in a sentence, the smallest first, and what the weights alone contribute.

    Example:
        >>> kinds = ("Sigmoid", "Linear")
        >>> gains_as_text(Snapshot(0, ("a", "b"), kinds=kinds, gain=[0.2, 0.6], weight_gain=[np.nan, 0.58]))
        'The Sigmoid multiplies the gradient by 0.2, the Linear by 0.6 (its weights alone: 0.58).'
    """
    gains = sorted(gain_by_kind(snapshot).items(), key=lambda item: item[1][1])
    if not gains:
        return "No gain could be measured."
    alone = gain_by_kind(snapshot, "weight_gain")
    parts = [f"{_counted(kind, count)} by {gain:.2g}{_alone(kind, count, alone)}" for kind, (count, gain) in gains]
    sentence = ", ".join(parts).replace(" by ", " multiplies the gradient by ", 1)
    return sentence[0].upper() + sentence[1:] + "."


def weights_gain(snapshot: Snapshot) -> float:
    """Geometric mean of what the hidden layers' weights alone do to the gradient; NaN without any.

    Taken together, a wide layer's large gain and the next one's small gain cancel.

    Example:
        >>> weights_gain(Snapshot(0, ("a", "b", "c"), weight_gain=[9.0, 0.5, 2.0]))
        1.0
    """
    gains = _hidden_gains(snapshot)
    return _mean(gains) if len(gains) else float("nan")


def weights_gain_in_all(snapshot: Snapshot) -> float:
    """What the weights of all hidden layers together leave of the gradient; 1 without any.

    Example:
        >>> weights_gain_in_all(Snapshot(0, ("a", "b", "c"), weight_gain=[9.0, 0.5, 0.25]))
        0.125
    """
    return float(np.prod(_hidden_gains(snapshot)))


def activation_gain(snapshot: Snapshot) -> float:
    """Geometric mean gain of the bounded activations; NaN without any."""
    bounded = np.array([kind in BOUNDED for kind in snapshot.kinds], bool)
    usable = snapshot.gain[bounded & (snapshot.gain > 0) & np.isfinite(snapshot.gain)]
    return _mean(usable) if len(usable) else float("nan")


def has(snapshot: Snapshot, *kinds: str) -> bool:
    """Whether some layer is of one of the kinds."""
    return any(kind in kinds for kind in snapshot.kinds)


def fall(snapshot: Snapshot) -> float:
    """How much of the largest gradient is left at the first layer; NaN where it is not known.

    Example:
        >>> fall(Snapshot(0, ("a", "b"), grad_norm=[1.0, 1.0], grad_output_norm=[0.1, 2.0]))
        0.05
    """
    norms = snapshot.grad_output_norm[~np.isnan(snapshot.grad_norm) & np.isfinite(snapshot.grad_output_norm)]
    return float(norms[0] / norms.max()) if len(norms) > 1 and norms.max() > 0 else float("nan")


def fall_as_text(snapshot: Snapshot) -> str:
    """The same as a sentence; empty where it is not known."""
    left = fall(snapshot)
    return "" if np.isnan(left) else f" At the first layer {left:.1e} of the largest is left."


def _hidden_gains(snapshot: Snapshot) -> Array:
    known = snapshot.weight_gain[~np.isnan(snapshot.weight_gain)][1:]  # the first passes nothing on
    return np.asarray(known[(known > 0) & np.isfinite(known)])


def _mean(values: Array) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _counted(kind: str, count: int) -> str:
    return f"the {kind}" if count == 1 else f"each of the {count} {kind}s"


def _alone(kind: str, count: int, alone: dict[str, tuple[int, float]]) -> str:
    return f" ({'its' if count == 1 else 'their'} weights alone: {alone[kind][1]:.2g})" if kind in alone else ""
