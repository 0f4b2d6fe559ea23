"""What a short look is enough for: findings that a longer training would take back are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradwatch.diagnosis import diagnose
from gradwatch.preflight.recorder import Recorder
from gradwatch.probe.layers import ROOT
from gradwatch.records import Finding, Snapshot
from gradwatch.runs import Run

# Half the units of a deep ReLU network may rest in one batch; AUTOTRAINER (Zhang et al., ICSE 2021) calls a network
# dying where 70 % of the gradient's entries are zero.
_DEAD = 0.7
_GATED = ("LSTM", "GRU")


def believed(run: Run, recorder: Recorder) -> Run:
    """The run with the findings that one pass, or a few steps, are enough for, and their causes.

    Left out are units that rest, gated cells over their calls, as their gates open in training, and the parameters of
    modules that wait for their turn, one head or expert of several: not called, or with a gradient at another step.

    Example:
        >>> dead = Finding("dead", ("relu",), 0, 0.55, 0.5, "half of it is dead")
        >>> believed(Run("Net", (Snapshot(0, ("relu",)),), (dead,)), Recorder()).findings
        ()
    """
    if not run.history:
        return run
    kept = tuple(filter(None, (_kept(finding, run.history, recorder) for finding in run.findings)))
    return replace(run, findings=kept, diagnoses=tuple(diagnose(kept, run.history)))


def idle(snapshot: Snapshot, recorder: Recorder) -> list[str]:
    """Layers that were not called.

    Example:
        >>> idle(Snapshot(0, ("first", "second"), params=("first.weight", "second.weight")), Recorder())
        ['first', 'second']
    """
    owners = dict.fromkeys(map(_owner, snapshot.params))
    return [layer for layer in owners if layer not in recorder.called]


def _kept(finding: Finding, history: Sequence[Snapshot], recorder: Recorder) -> Finding | None:
    if finding.kind == "dead" and finding.value < _DEAD:
        return None
    if finding.kind == "vanishing" and all(_is_gated(layer, history[-1]) for layer in finding.layers):
        return None
    if finding.kind == "stalled" and set(finding.layers) & set(history[0].left_out):
        last = history[-1].left_out  # in a first step, another optimizer may still have its turn
        return finding if len(history) > 1 and set(finding.layers) <= set(last) else None
    if finding.kind == "stalled":
        moved = with_gradient(history)
        stuck = tuple(name for name in finding.layers if _owner(name) in recorder.called and name not in moved)
        return replace(finding, layers=stuck) if stuck else None
    return finding


def with_gradient(history: Sequence[Snapshot]) -> set[str]:
    """The parameters that had a gradient other than zero at some step.

    Example:
        >>> import numpy as np
        >>> sorted(with_gradient([Snapshot(0, (), params=("a", "b"), param_grad_norm=np.array([0.0, 2.0]))]))
        ['b']
    """
    pairs = (zip(each.params, each.param_grad_norm.tolist(), strict=True) for each in history)
    return {name for params in pairs for name, norm in params if norm > 0}


def _is_gated(layer: str, snapshot: Snapshot) -> bool:
    kind = snapshot.kinds[snapshot.layers.index(layer)]
    return layer in snapshot.calls and any(gate in kind for gate in _GATED)


def _owner(param: str) -> str:
    return param.rpartition(".")[0] or ROOT
