"""What is wrong with a batch, seen in one pass: inputs and targets of another scale, or out of reach."""

from __future__ import annotations

from collections.abc import Iterator

from gradwatch.preflight.inputs import LARGE, measure
from gradwatch.preflight.seen import Seen
from gradwatch.records import Diagnosis

_SMALL = 1e-3
_OUTLIER = 100.0  # times the median sample
_BEYOND = 0.1  # of the targets: a few may be noise


def inputs(seen: Seen) -> Iterator[Diagnosis]:
    """Inputs of another scale than initializations are made for."""
    scale, first = seen.inputs, seen.recorder.first
    if scale is None or first is None:
        return
    where = f"What {first[0]} gets: {scale}."
    if scale.nonfinite:
        yield Diagnosis("outlier batch", where, 1.0, seen.findings("nonfinite"), ("clean the data of NaN and Inf",))
    if scale.outlier > _OUTLIER:
        yield Diagnosis("outlier batch", where, 0.8, (), ("look at that sample", "clip or scale the inputs robustly"))
    elif scale.is_large or 0 < scale.rms < _SMALL:
        remedies = ("scale each feature to mean 0 and deviation 1", "a normalization layer in front")
        grown = seen.findings("exploding", "saturated", "dead")
        yield Diagnosis("unscaled input", where, 0.95 if scale.rms > 10 * LARGE else 0.8, grown, remedies)


def target(seen: Seen) -> Iterator[Diagnosis]:
    """Targets of another scale than the output, or outside of what the loss is made for."""
    binary, distance = seen.recorder.head.binary, seen.recorder.head.distance
    if binary is not None and bool(((binary < 0) | (binary > 1)).any()):
        text = f"Targets of a binary cross-entropy go from {float(binary.min()):.3g} to {float(binary.max()):.3g}."
        yield Diagnosis("unscaled target", text, 1.0, (), ("targets from 0 to 1",))
    if seen.target is None:
        return
    scale = measure(seen.target)
    output = measure(distance[0]).rms if distance is not None else 1.0
    text = f"The targets: {scale}. The output: root mean square {output:.3g}."
    if scale.nonfinite:
        yield Diagnosis("outlier batch", text, 1.0, seen.findings("nonfinite"), ("clean the data of NaN and Inf",))
    elif scale.rms > LARGE * max(output, 1.0):
        remedies = ("scale the targets to mean 0 and deviation 1", "start the last bias at their mean")
        yield Diagnosis("unscaled target", text, 0.8, seen.findings("exploding"), remedies)


def reach(seen: Seen) -> Iterator[Diagnosis]:
    """Targets that the last activation's outputs can't come to."""
    if seen.recorder.head.bounded is None:
        return
    kind, beyond = seen.recorder.head.bounded
    if beyond > _BEYOND:
        text = f"The network ends in a {kind}, and {beyond:.0%} of the targets lie beyond what that can put out."
        remedies = (f"no {kind} at the end", "targets scaled to its range")
        yield Diagnosis("unscaled target", text, 0.95, (), remedies)
