"""How a run went: its losses, where it began, what of it was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
