"""Causes in the signal on its way forward: an activation without bound, and a code that says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradwatch.diagnosis.evidence import NO_PROGRESS, Evidence, weights_gain
from gradwatch.diagnosis.ranking import Claim, rule
from gradwatch.layer_kinds import is_activation, is_normalization
from gradwatch.paths import Paths
from gradwatch.progress import DOES_WELL
from gradwatch.records import Snapshot

# By judgement, checked by tests/benchmarks/forward_signal. Slope of an activation between two layers: no usual one has
# more than 1.8 (SELU); GELU has 1.13, ReLU and Tanh 1.
STEEP = 4.0
STEEPER = 3.0  # times its own slope where less came in: a scale, such as 30 in a sine, is the same for all
LARGER = 1.5  # what came in where it is steep, over what came in where it is flat
JUMP = 10.0  # of the signal, from one layer to the next, with ordinary weights; a ReLU with He's gives about 1
ORDINARY = 2.0  # gain of weights; He's have 1.41
# Root mean squares, by judgement: noise has 1. A mean of 0.1, and logarithms of variances of 0.2, tell 0.015 nats for
# each number of the code. New layers have as little, so it counts once it has halved, and is at its lowest.
_EMPTY_MEAN, _EMPTY_DEVIATION = 0.1, 0.2
_SHRUNK, _AT_LOWEST = 0.5, 1.1
_TO_COLLAPSE = 100  # steps


@dataclass(frozen=True)
class Passage:
    """The way from one layer with weights to the next, past functions that are no layers.

    Attributes:
        names: the two layers.
        slope: root mean square of the slope of what is between them, weighted by the gradient; NaN where unknown.
        before, after: root mean square of the outputs.
    """

    names: tuple[str, str]
    slope: float
    before: float
    after: float


def passages(snapshot: Snapshot) -> Iterator[Passage]:
    """Yield the passages with nothing but a function of the user's forward pass between two layers.

    A layer that is called several times a step has no single slope behind it.

    Example:
        >>> columns = {"weight_gain": [0.6, 0.6], "gain": [np.nan, 0.5]}
        >>> columns |= {"output_rms": [1, 5], "grad_output_rms": [6, 1]}
        >>> [passage.slope for passage in passages(Snapshot(0, ("a", "b"), ("Linear", "Linear"), **columns))]
        [12.0]
    """
    known = np.flatnonzero(~np.isnan(snapshot.weight_gain)).tolist()
    for a, others in zip(known, Paths.of(snapshot, known).followers, strict=True):
        b = known[min(others)] if others else a
        names = snapshot.layers[a], snapshot.layers[b]
        if a == b or any(name in snapshot.calls for name in names):
            continue
        between = snapshot.kinds[a + 1 : b]
        if any(is_activation(kind) or is_normalization(kind) for kind in between):
            continue
        slope = snapshot.grad_output_rms[a] / (snapshot.gain[b] * snapshot.grad_output_rms[b])
        yield Passage(names, float(slope), float(snapshot.output_rms[a]), float(snapshot.output_rms[b]))


@rule("unbounded activation", 0.88)
def unbounded_activation(evidence: Evidence) -> Claim | None:
    """A function between two layers is the steeper the more comes in: exp, a square or a cube."""
    about = evidence.found("nonfinite", "exploding", "spike")
    is_over = any(finding.is_open for finding in evidence.found("nonfinite"))
    if not about or evidence.loss_fall > (DOES_WELL if is_over else NO_PROGRESS):
        return None
    steep = _steepening(evidence)
    if steep is not None:
        flat, worst = steep
        text = (
            f"Between {worst.names[0]} and {worst.names[1]} the slope is {worst.slope:.2g} where the layer before puts "
            f"out {worst.before:.2g}, and {flat.slope:.2g} for {flat.before:.2g} (ReLU, GELU, Tanh: 1 or less): "
            f"something there grows faster than its input, such as exp, a square or a cube. {evidence.loss_in_words}"
        )
        return Claim(text, about)
    jump = _jump(evidence)
    if jump is not None:
        text = (
            f"The output grows from {jump.before:.2g} at {jump.names[0]} to {jump.after:.2g} at {jump.names[1]} with "
            f"ordinary weights: something between them grows faster than its input, such as exp, a square or a cube."
        )
        return Claim(text, about)
    return None


def _steepening(evidence: Evidence) -> tuple[Passage, Passage] | None:
    """Return the flattest and the steepest passage, where the slope comes from the size of what passes."""
    found: dict[tuple[str, str], list[Passage]] = {}
    for snapshot in evidence.history:
        for passage in passages(snapshot):
            if passage.slope > 0 and np.isfinite([passage.slope, passage.before, passage.after]).all():
                found.setdefault(passage.names, []).append(passage)
    rows = [*found.values(), [first for row in found.values() for first in row[:1]]]  # over time, and over depth
    for row in rows:
        if len(row) < 2:
            continue
        flat, worst = min(row, key=lambda each: each.slope), max(row, key=lambda each: each.slope)
        grows = worst.before > LARGER * flat.before and worst.after * flat.before > worst.before * flat.after
        if worst.slope > max(STEEP, STEEPER * flat.slope) and grows:
            return flat, worst
    return None


def _jump(evidence: Evidence) -> Passage | None:
    """Return a passage through which the signal grows far more than weights do, and more than at the one before.

    Only before training: trained weights point along what they get, and make more of it than random ones.
    """
    first = evidence.first
    if first.step or not weights_gain(first) < ORDINARY or not np.nanmax(first.weight_gain, initial=0.0) < ORDINARY**2:
        return None
    for earlier, passage in pairwise(passages(first)):
        growth = passage.after / passage.before if 0 < passage.before < np.inf else 0.0
        if growth > JUMP and growth > STEEPER * earlier.after / earlier.before:
            return passage
    return None


@rule("posterior collapse", 0.8)
def posterior_collapse(evidence: Evidence) -> Claim | None:
    """The code of a variational autoencoder is the same for all samples, so its decoder hears noise alone.

    References:
        S. R. Bowman et al., Generating sentences from a continuous space, CoNLL 2016.
    """
    names = evidence.last.code
    if not names or evidence.last.step - evidence.first.step < _TO_COLLAPSE:
        return None
    rows = [np.array([_output(snapshot, name) for snapshot in evidence.history]) for name in names]
    mean, deviation = (row[np.isfinite(row)] for row in (rows[0], rows[-1]))
    if not len(mean) or not len(deviation):
        return None
    is_empty = mean[-1] < _EMPTY_MEAN and deviation[-1] < _EMPTY_DEVIATION
    has_shrunk = mean[-1] < _SHRUNK * mean[0] and mean[-1] <= _AT_LOWEST * mean.min() and deviation[-1] < deviation[0]
    if not (is_empty and has_shrunk):
        return None
    text = (
        f"The mean of the sampled code, which {names[0]} puts out, has shrunk from {mean[0]:.2g} to {mean[-1]:.2g} "
        f"(root mean square; the noise that is added has 1), and its deviation is that of the noise: the decoder gets "
        f"nothing of the sample. The divergence outweighs the reconstruction."
    )
    return Claim(text)


def _output(snapshot: Snapshot, layer: str) -> float:
    return float(snapshot.output_rms[snapshot.layers.index(layer)]) if layer in snapshot.layers else float("nan")
