"""Causes in time: a cell's gradient over its calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradwatch.diagnosis.evidence import EARLY, found, is_stuck, nearest, over_calls
from gradwatch.diagnosis.optimization import LARGE_STEP, first_steps
from gradwatch.layer_kinds import is_gated_recurrent
from gradwatch.records import RECURRENT, Diagnosis, Finding, Snapshot


def recurrent_depth(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """The gradient of a layer that is called again and again fades, or grows, from its last call to its first."""
    about = tuple(f for f in found(findings, "vanishing", "exploding") if over_calls(f, history))
    if not about:
        return _overflowing(findings, history) or _fused(findings, history)
    finding = about[0]
    snapshot = nearest(history, finding.step)
    layer = next((name for name in finding.layers if name in snapshot.calls), None)
    if layer is None:
        return None
    calls, kind = snapshot.calls[layer], snapshot.kinds[snapshot.layers.index(layer)]
    fades = finding.kind == "vanishing"
    if not fades and calls[0] <= calls[-1]:
        return None  # it is large at all of them: depth or the rate made it so
    evidence = (
        f"Over {snapshot.calls_as_text(layer)} of {kind} {layer} the gradient {'falls' if fades else 'grows'} from "
        f"{calls[-1]:.1e} at the last to {calls[0]:.1e} at the first."
    )
    started_well = finding.step >= EARLY and first_steps(history) > LARGE_STEP
    return Diagnosis("recurrent depth", evidence, 0.6 if started_well else 0.9, about, _remedies(fades, kind))


def _overflowing(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """Numbers overflow in the first steps, before growth over the calls could last."""
    about = tuple(f for f in found(findings, "nonfinite", "exploding") if f.step < EARLY)
    if not about or not history:
        return None
    for layer, calls in history[0].calls.items():
        rise = calls[0] / calls[-1] if len(calls) > 4 and 0 < calls[-1] < np.inf else 0.0
        if rise > 30:
            span = history[0].calls_as_text(layer)
            evidence = f"At the first step the gradient of {layer} grew {rise:.1e} times over its {span}."
            return Diagnosis("recurrent depth", evidence, 0.8, about, _remedies(False, ""))
    return None


def _fused(findings: Sequence[Finding], history: Sequence[Snapshot]) -> Diagnosis | None:
    """A layer that hides its steps from hooks: its own gradient tells of an explosion alone."""
    about = tuple(f for f in found(findings, "exploding", "nonfinite") if f.step < 20)
    if not about or not history or not is_stuck(history, 0.3):
        return None
    first = history[0]
    ratios = np.nan_to_num(first.grad_to_weight_ratio, nan=0.0, posinf=np.inf)
    worst = int(np.argmax(ratios)) if len(ratios) else 0
    if not len(ratios) or first.kinds[worst] not in RECURRENT or not ratios[worst] > 10:
        return None
    evidence = f"The gradient of {first.kinds[worst]} {first.layers[worst]} is {ratios[worst]:.1e} times its weights."
    return Diagnosis("recurrent depth", evidence, 0.7, about, _remedies(False, first.kinds[worst]))


def _remedies(fades: bool, kind: str) -> tuple[str, ...]:
    if not fades:
        return ("clip by the global norm", "orthogonal recurrent weights", "an LSTM or GRU")
    first = "a shorter way back through time" if is_gated_recurrent(kind) else "an LSTM or GRU"
    return (first, "orthogonal recurrent weights", "shorter sequences")
