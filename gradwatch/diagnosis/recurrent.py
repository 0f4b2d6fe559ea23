"""Causes in time: the gradient of a cell over its calls."""

from __future__ import annotations

import numpy as np

from gradwatch.diagnosis.evidence import EARLY, Evidence
from gradwatch.diagnosis.optimization import LARGE_UPDATE
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.layer_kinds import is_gated_recurrent

MIN_CALLS = 4
GROWTH_OVER_CALLS = 30.0  # at the first step, before growth could last
SOON = 20  # steps
STUCK = 0.3  # share of the loss
GRADIENT_TO_WEIGHT = 10.0  # usual: well below 1


@rule(
    "recurrent depth", {"fades": 0.9, "gated fades": 0.9, "grows": 0.9, "later": 0.6, "overflows": 0.8, "hidden": 0.7}
)
def recurrent_depth(evidence: Evidence) -> Claim | None:
    """The gradient of a layer that runs several times a step fades, or grows, from its last call to its first."""
    about = tuple(f for f in evidence.found("vanishing", "exploding") if evidence.is_over_calls(f))
    if not about:
        return _overflowing(evidence) or _hidden_in_one_call(evidence)
    finding = about[0]
    snapshot = evidence.nearest(finding.step)
    layer = next((name for name in finding.layers if name in snapshot.calls), None)
    if layer is None:
        return None
    calls, kind = snapshot.calls[layer], snapshot.kinds[snapshot.layers.index(layer)]
    fades = finding.kind == "vanishing"
    if not fades and calls[0] <= calls[-1]:
        return None  # large at all of them: the depth or the rate made it so
    text = (
        f"Over {snapshot.calls_as_text(layer)} of {kind} {layer} the gradient {'falls' if fades else 'grows'} from "
        f"{calls[-1]:.1e} at the last to {calls[0]:.1e} at the first."
    )
    case = "grows" if not fades else "gated fades" if is_gated_recurrent(kind) else "fades"
    started_well = finding.step >= EARLY and evidence.first_updates > LARGE_UPDATE
    return Claim(text, about, case, "later" if started_well else None)


def _overflowing(evidence: Evidence) -> Claim | None:
    """Look for numbers that overflow in the first steps, before growth over the calls could last."""
    about = tuple(finding for finding in evidence.found("nonfinite", "exploding") if finding.step < EARLY)
    for layer, calls in evidence.first.calls.items() if about else ():
        rise = calls[0] / calls[-1] if len(calls) > MIN_CALLS and 0 < calls[-1] < np.inf else 0.0
        if rise > GROWTH_OVER_CALLS:
            span = evidence.first.calls_as_text(layer)
            text = f"At the first step the gradient of {layer} grew {rise:.1e} times over its {span}."
            return Claim(text, about, "grows", "overflows")
    return None


def _hidden_in_one_call(evidence: Evidence) -> Claim | None:
    """Look at torch's own recurrent networks, which hide their steps: only the gradient of their weights tells."""
    first = evidence.first
    about = tuple(finding for finding in evidence.found("exploding", "nonfinite") if finding.step < SOON)
    ratios = np.nan_to_num(first.grad_to_weight_ratio, nan=0.0, posinf=np.inf)
    if not about or not len(ratios) or not evidence.is_stuck(STUCK):
        return None
    worst = int(np.argmax(ratios))
    if not first.takes_steps(first.layers[worst]) or not ratios[worst] > GRADIENT_TO_WEIGHT:
        return None
    text = f"The gradient of {first.kinds[worst]} {first.layers[worst]} is {ratios[worst]:.1e} times its weights."
    return Claim(text, about, "grows", "hidden")
