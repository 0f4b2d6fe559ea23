"""The rule for a cell that is called many times."""

from __future__ import annotations

from collections.abc import Iterator

from gradwatch.diagnosis.run import Run
from gradwatch.records import Diagnosis


def recurrent(run: Run) -> Iterator[Diagnosis]:
    """The gradient fades or grows over the calls of one layer."""
    for finding in run.of("vanishing", "exploding"):
        snapshot = run.near(finding)
        cells = [layer for layer in finding.layers if layer in snapshot.calls]
        if not cells:
            continue
        calls = snapshot.calls[cells[0]]
        fades = finding.kind == "vanishing"
        each = (calls[0] / calls[-1]) ** (1 / max(len(calls) - 1, 1)) if calls[-1] > 0 else float("nan")
        evidence = (
            f"Over {len(calls)} calls of {cells[0]} the norm {'falls' if fades else 'grows'} from {calls[-1]:.1e} to "
            f"{calls[0]:.1e}: each call multiplies it by {each:.2g}."
        )
        kind = snapshot.kinds[snapshot.layers.index(cells[0])]
        gated = "LSTM" in kind or "GRU" in kind
        first = "a shorter way back through time" if gated else "an LSTM or GRU"
        remedies = (first, "orthogonal recurrent weights", "shorter sequences")
        if not fades:
            remedies = ("clip by the global norm", "orthogonal recurrent weights", "a GRU")
        yield Diagnosis("recurrent depth", evidence, 0.95, (finding,), remedies)
