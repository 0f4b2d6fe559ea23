"""Rules for what the network is fed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.diagnosis.depth import LARGE_GAIN, typical
from gradwatch.diagnosis.run import LARGE_INPUT, Run
from gradwatch.records import Diagnosis, Finding


def unscaled_input(run: Run) -> Iterator[Diagnosis]:
    """The inputs are far from a size of 1."""
    size = run.input_rms
    found = run.of("exploding", "nonfinite", "dead", "saturated", "vanishing", "spike", "stalled")
    if np.isfinite(size) and (size > LARGE_INPUT or 0 < size < 1 / LARGE_INPUT**2) and (found or run.is_stuck):
        evidence = f"The inputs' root mean square is {size:.3g}; that of standardized data is 1."
        remedies = (
            "scale the inputs to mean 0 and deviation 1",
            "a normalization layer first",
            "a lower learning rate",
        )
        yield Diagnosis("unscaled input", evidence, 0.96, found, remedies)


def unscaled_target(run: Run) -> Iterator[Diagnosis]:
    """The first loss is huge though the network puts out moderate numbers: they are held against huge ones."""
    outputs = run.first.output_rms[np.isfinite(run.first.output_rms)] if run.history else np.empty(0)
    found = run.of("exploding", "nonfinite", "dead", "saturated", "vanishing", "spike")
    distance = float(np.sqrt(max(run.start_loss, 0.0)))
    if not (found or run.is_stuck) or not len(outputs) or not 5 < distance < np.inf or run.input_rms > LARGE_INPUT:
        return
    if distance > 3 * outputs[-1]:
        is_sure = not typical(run.first.weight_gain) > LARGE_GAIN
        evidence = (
            f"The first loss is {run.start_loss:.3g}, while the last layer's outputs have a root mean square of "
            f"{outputs[-1]:.2g}: as a squared error that is a distance of {distance:.3g}."
        )
        remedies = ("scale the targets to mean 0 and deviation 1", "a lower learning rate", "Huber loss")
        yield Diagnosis("unscaled target", evidence, 0.95 if is_sure else 0.6, found, remedies)


def outlier(run: Run) -> Iterator[Diagnosis]:
    """One batch stands out: before and after it all is as usual, or its inputs are not finite."""
    odd = [snapshot for snapshot in run.history if np.isinf(snapshot.input_rms)]
    found = run.of("nonfinite", "spike")
    if odd and found:
        evidence = f"The inputs of step {odd[0].step} hold NaN or Inf."
        yield Diagnosis("outlier batch", evidence, 0.98, found, _LOOK)
        return
    for finding in run.of("spike"):
        if _stands_alone(run, finding):
            size = run.near(finding).input_rms
            usual = float(np.median([snapshot.input_rms for snapshot in run.history]))
            is_input = run.near(finding).step == finding.step and size > 3 * usual
            evidence = f"{', '.join(finding.layers)} reached {finding.value:.3g} at step {finding.step} alone; before "
            evidence += f"and after, the limit of {finding.threshold:.3g} was kept."
            evidence += f" That batch's inputs have a root mean square of {size:.3g}, usually {usual:.3g}." * is_input
            yield Diagnosis("outlier batch", evidence, 0.95 if is_input else 0.85, (finding,), _LOOK)
    late = [f for f in run.of("nonfinite") if f.step > run.first.step and _was_calm(run, f)]
    if late:
        evidence = f"Up to step {late[0].step} loss and gradient were as usual, then NaN or Inf came within one step."
        yield Diagnosis("outlier batch", evidence, 0.6, tuple(late), _LOOK)


_LOOK = ("look at the batch of that step", "skip non-finite steps", "clip by the global norm")


def _stands_alone(run: Run, finding: Finding) -> bool:
    steps = np.concatenate([snapshot.trace_step for snapshot in run.history])
    losses = np.concatenate([np.asarray(snapshot.trace_loss) for snapshot in run.history])
    after = losses[(steps > finding.step) & np.isfinite(losses)]
    before = losses[(steps < finding.step) & np.isfinite(losses)][-20:]
    if not len(before) or not len(after):
        return bool(len(before))
    return bool(np.median(after) < 2 * abs(np.median(before)) + 1e-12) and len(run.of("spike")) <= 3


def _was_calm(run: Run, finding: Finding) -> bool:
    norms = np.array([s.total_norm for s in run.history if s.step < finding.step and np.isfinite(s.total_norm)])
    steps = np.concatenate([snapshot.trace_step for snapshot in run.history])
    losses = np.concatenate([np.asarray(snapshot.trace_loss) for snapshot in run.history])
    before = losses[(steps < finding.step) & np.isfinite(losses)]
    return (
        len(norms) > 1
        and bool(norms[-3:].max() < 10 * np.median(norms))
        and (len(before) < 2 or bool(before[-3:].max() < 3 * abs(np.median(before)) + 1e-12))
    )
