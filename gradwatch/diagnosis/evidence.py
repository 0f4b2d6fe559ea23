"""How a run went: its losses, where it began, what of it was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from gradwatch.layer_kinds import is_bounded, is_softmax
from gradwatch.records import Array, Finding, Snapshot

EARLY = 10  # steps: what is wrong so soon is a matter of how training was set up, not of how it went
_FIRST = 2  # steps, after which weights are what training has made of them
_FEW = 8  # losses, below which nothing is said of how they went


def losses(history: Sequence[Snapshot]) -> Array:
    """The loss of each step that is known, in order; ``inf`` where it was NaN.

    Example:
        >>> losses([Snapshot(1, (), trace_step=[0, 1], trace_loss=[2.0, 1.0])])
        array([2., 1.])
    """
    known = [np.asarray(snapshot.trace_loss, np.float64) for snapshot in history]
    row = np.concatenate(known) if known else np.empty(0)
    return row[~np.isnan(row)]


def beginning(history: Sequence[Snapshot]) -> Snapshot | None:
    """The first Snapshot, if it is of the run's first steps."""
    return history[0] if history and history[0].step < EARLY else None


def fallen(history: Sequence[Snapshot]) -> float:
    """By which share the loss has fallen: 1 for to nothing, 0 for not at all, below 0 where it rose; NaN if unknown.

    Example:
        >>> round(fallen([Snapshot(9, (), trace_step=range(10), trace_loss=np.linspace(1.0, 0.1, 10))]), 2)
        0.67
    """
    row = losses(history)
    if len(row) < _FEW:
        return float("nan")
    tail = max(5, len(row) // 10)
    first, last = float(np.median(row[:3])), float(np.median(row[-tail:]))
    if not np.isfinite(first) or first == 0:
        return float("nan")
    return -np.inf if not np.isfinite(last) else (first - last) / abs(first)


def is_stuck(history: Sequence[Snapshot], least: float = 0.1) -> bool:
    """Whether the loss is known to have fallen by less than a share."""
    share = fallen(history)
    return bool(share < least)


def found(findings: Sequence[Finding], *kinds: str) -> tuple[Finding, ...]:
    """The findings of some kinds."""
    return tuple(finding for finding in findings if finding.kind in kinds)


def from_start(findings: Sequence[Finding], history: Sequence[Snapshot]) -> tuple[Finding, ...]:
    """Gradients that vanish from the first steps on; later it is the training that made them."""
    first = beginning(history)
    return tuple(f for f in found(findings, "vanishing") if first is not None and f.step <= first.step + _FIRST)


def dead_share(history: Sequence[Snapshot]) -> float:
    """The share of dead units in the first layer of ReLUs, when it was first known; 0 where that was not soon.

    Deeper ones may be off for what comes in: where the signal has faded, biases alone decide.
    """
    for snapshot in history:
        known = snapshot.dead_fraction[~np.isnan(snapshot.dead_fraction)]
        if snapshot.step < EARLY and len(known):
            return float(known[0])
    return 0.0


def over_calls(finding: Finding, history: Sequence[Snapshot]) -> bool:
    """Whether a finding is about layers that are called again and again."""
    return any(layer in snapshot.calls for snapshot in history[:3] for layer in finding.layers)


def nearest(history: Sequence[Snapshot], step: int) -> Snapshot:
    """The Snapshot that is closest to a step."""
    return min(history, key=lambda snapshot: abs(snapshot.step - step))


def before(history: Sequence[Snapshot], step: int) -> Array:
    """The finite losses of the steps before one."""
    pairs = [(s.trace_step, np.asarray(s.trace_loss, np.float64)) for s in history]
    row: Array = np.concatenate([values[np.asarray(steps) < step] for steps, values in pairs]) if pairs else np.empty(0)
    return np.asarray(row[np.isfinite(row)])


def after(history: Sequence[Snapshot], step: int) -> Array:
    """The losses of the steps after one."""
    pairs = [(s.trace_step, np.asarray(s.trace_loss, np.float64)) for s in history]
    row: Array = np.concatenate([values[np.asarray(steps) > step] for steps, values in pairs]) if pairs else np.empty(0)
    return np.asarray(row[~np.isnan(row)])


def is_rising(past: Array) -> bool:
    """Whether the last losses are well above those before them, or too few to tell."""
    if len(past) < 3:
        return True
    recent = float(np.median(past[-3:]))
    return recent > 2 * float(np.median(past[-20:])) or recent > 3 * float(np.median(past[:3]))


def told(history: Sequence[Snapshot]) -> str:
    """The course of the loss, as a sentence; empty where it is not known."""
    row = losses(history)
    if len(row) < _FEW:
        return ""
    last = row[-1]
    return f"The loss was {row[0]:.3g} at first and {'NaN or Inf' if np.isinf(last) else f'{last:.3g}'} at the end."


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
    bounded = np.array([is_bounded(kind) or is_softmax(kind) for kind in snapshot.kinds], bool)
    usable = snapshot.gain[bounded & (snapshot.gain > 0) & np.isfinite(snapshot.gain)]
    return _mean(usable) if len(usable) else float("nan")


def has(snapshot: Snapshot, is_kind: Callable[[str], bool]) -> bool:
    """Return True if some layer is of a kind."""
    return any(map(is_kind, snapshot.kinds))


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


def with_gradient(history: Sequence[Snapshot]) -> set[str]:
    """The parameters that had a gradient other than zero at some step.

    Example:
        >>> import numpy as np
        >>> sorted(with_gradient([Snapshot(0, (), params=("a", "b"), param_grad_norm=np.array([0.0, 2.0]))]))
        ['b']
    """
    pairs = (zip(each.params, each.param_grad_norm.tolist(), strict=True) for each in history)
    return {name for params in pairs for name, norm in params if norm > 0}
