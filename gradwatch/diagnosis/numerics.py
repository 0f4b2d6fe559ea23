"""Rules for what numbers can't hold: operations without a guard, half precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.diagnosis.run import Run
from gradwatch.records import Diagnosis, Snapshot

_GUARD = ("an epsilon in divisions, logs and roots", "clamp what goes into exp", "skip non-finite steps")


def unguarded(run: Run) -> Iterator[Diagnosis]:
    """NaN or Inf out of finite numbers, within one step."""
    for finding in run.of("nonfinite"):
        snapshot = run.near(finding)
        forward = np.flatnonzero(np.isinf(snapshot.output_rms))
        before = [s for s in run.history if s.step < finding.step and np.isfinite(s.total_norm)]
        norms = np.array([s.total_norm for s in before])
        if len(norms) > 1 and norms[-3:].max() > 10 * np.median(norms[:5]):
            continue  # it grew: the numbers were not usual before
        if snapshot.step == finding.step and not len(forward):
            where = "in the backward pass only" if np.isfinite(snapshot.loss) else "in the loss"
            evidence = f"All layers' outputs are finite at step {finding.step}; NaN or Inf comes up {where}."
            yield Diagnosis("unguarded operation", evidence, 0.9, (finding,), _GUARD)
        else:
            layer = snapshot.layers[forward[0]] if len(forward) else "the loss"
            evidence = f"NaN or Inf comes up first in {layer}, from finite inputs, and the norms before were usual."
            yield Diagnosis("unguarded operation", evidence, 0.55, (finding,), _GUARD)


def underflow(run: Run) -> Iterator[Diagnosis]:
    """Half precision loses the gradients, or a loss scale drives them beyond what it holds."""
    halves = [snapshot for snapshot in run.history if snapshot.dtype == "float16"]
    if not halves:
        return
    skipped = float(np.mean([snapshot.skipped for snapshot in halves]))
    zero = float(np.median([_zero(snapshot) for snapshot in halves]))
    found = run.of("nonfinite", "stalled", "vanishing")
    if skipped > 0.5 or zero > 0.5 or (found and (zero > 0.2 or run.of("nonfinite"))):
        scale = halves[-1].loss_scale
        evidence = (
            f"In float16 {zero:.0%} of the gradients' entries are exactly zero and {skipped:.0%} of the steps were "
            f"skipped; the loss scale is {'none' if np.isnan(scale) else f'{scale:g}'}."
        )
        remedies = ("bf16 in place of fp16", "a GradScaler that adapts its scale", "float32 for the loss")
        yield Diagnosis("precision underflow", evidence, 0.94, found, remedies)


def _zero(snapshot: Snapshot) -> float:
    known = snapshot.zero_fraction[np.isfinite(snapshot.zero_fraction)]
    return float(np.mean(known)) if len(known) else 0.0
