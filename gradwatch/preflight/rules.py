"""What is wrong with a batch, a head or an initialization, seen in one pass. A healthy network gets no word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradwatch.preflight.believed import with_gradient
from gradwatch.preflight.criticality import chi_of, typical
from gradwatch.preflight.inputs import Scale, measure
from gradwatch.preflight.recorder import Recorder
from gradwatch.records import Diagnosis, Finding
from gradwatch.reporting.words import listed
from gradwatch.runs import Run

# Initializations keep the size of inputs of unit variance (LeCun et al., Efficient BackProp, 1998, 4.3: inputs of mean
# 0 and about equal covariance). Ten times that is more than standardized, 0-to-1 or embedded data ever shows; pixels
# of 0 to 255 have 100 and more.
_LARGE = 10.0
_SMALL = 1e-3
_OUTLIER = 100.0  # times the median sample
# Geometric mean of chi over the blocks. Measured on the detection benchmark's programs for developing: 1.4 at most in
# the healthy ones without normalization, 5.6 to 15 in the three whose weights are drawn too large.
_GROWTH = 3.0
_BLOCKS = 2


@dataclass(frozen=True)
class Seen:
    """One pass.

    Attributes:
        run: its Snapshot and findings.
        recorder: what else it showed.
        batch: what it was given.
    """

    run: Run
    recorder: Recorder
    batch: Any

    @property
    def inputs(self) -> Scale | None:
        """Scale of what the first layer with weights got."""
        first = self.recorder.first
        return None if first is None else measure(first[1])

    @property
    def target(self) -> Tensor | None:
        """What a loss that measures a distance compares with; or the second half of a batch, if it is no label."""
        if self.recorder.head.distance is not None:
            return self.recorder.head.distance[1]
        pair = self.batch if isinstance(self.batch, (tuple, list)) and len(self.batch) == 2 else (None, None)
        is_score = isinstance(pair[1], Tensor) and pair[1].is_floating_point() and self.recorder.head.binary is None
        return pair[1] if is_score else None

    def findings(self, *kinds: str) -> tuple[Finding, ...]:
        """The findings of these kinds."""
        return tuple(finding for finding in self.run.findings if finding.kind in kinds)


def crash(seen: Seen) -> Iterator[Diagnosis]:
    """The pass came to no end."""
    if seen.run.trouble:
        text = seen.run.trouble.replace("the training raised", "the pass raised")
        text = f"{text[:1].upper()}{text[1:]}."
        if "does not require grad" in text:
            remedies = ("return the loss with its graph, without detach(), item() or no_grad()",)
            yield Diagnosis("frozen or detached part", text, 1.0, (), remedies)
        else:
            yield Diagnosis("not known", text, 1.0, (), ("read the error: it is raised before any step",))


def head(seen: Seen) -> Iterator[Diagnosis]:
    """A head that passes no gradient on, or hardly any."""
    found = seen.recorder.head
    if found.over_one:
        text = "The last softmax is over a single unit: its output is 1 whatever the weights are, the gradient 0."
        remedies = ("a sigmoid with binary cross-entropy on logits", "two units")
        yield Diagnosis("zero-gradient head", text, 1.0, seen.findings("stalled", "vanishing"), remedies)
    elif found.twice is not None:
        given, loss = found.twice
        text = f"The loss ({loss}) takes the output of a {given}, values from 0 to 1, for logits."
        remedy = f"no {given} before this loss, which has it inside"
        yield Diagnosis("zero-gradient head", text, 0.9, seen.findings("stalled"), (remedy,))


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
    elif scale.rms > _LARGE or 0 < scale.rms < _SMALL:
        remedies = ("scale each feature to mean 0 and deviation 1", "a normalization layer in front")
        grown = seen.findings("exploding", "saturated", "dead")
        yield Diagnosis("unscaled input", where, 0.95 if scale.rms > 10 * _LARGE else 0.8, grown, remedies)


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
    elif scale.rms > _LARGE * max(output, 1.0):
        remedies = ("scale the targets to mean 0 and deviation 1", "start the last bias at their mean")
        yield Diagnosis("unscaled target", text, 0.8, seen.findings("exploding"), remedies)


def dead(seen: Seen) -> Iterator[Diagnosis]:
    """ReLUs that no sample of the batch sets off; what is before them gets no gradient."""
    for finding in seen.findings("dead"):
        if finding.step:
            continue  # they died in training
        text = f"Before any step {finding.value:.0%} of the units of {listed(finding.layers)} fire for no sample."
        remedies = ("He initialization with zero biases", "LeakyReLU", "inputs of mean 0 and deviation 1")
        spoilt = (finding, *seen.findings("vanishing", "stalled"))
        yield Diagnosis("dead ReLU", text, 0.9, spoilt, remedies)


def large(seen: Seen) -> Iterator[Diagnosis]:
    """Weights under which the gradient grows with every block, and nothing that normalizes."""
    if not seen.run.history or any("Norm" in kind for kind in seen.run.history[0].kinds):
        return
    chi = chi_of(seen.run.history[0], seen.recorder.spreads, smaller=True)
    if len(chi) >= _BLOCKS and typical(chi.values()) > _GROWTH:
        growth = typical(chi.values()) ** 0.5
        span = f"{min(chi.values()):.2g} to {max(chi.values()):.2g}"
        text = f"Each of {len(chi)} blocks multiplies the gradient by {growth:.2g} (chi {span}; 1 keeps its size)."
        remedies = ("He initialization for ReLU, Xavier for Tanh, LeCun for SELU", "a normalization layer")
        spoilt = seen.findings("exploding", "saturated", "vanishing")
        yield Diagnosis("initialization too large", text, 0.85, spoilt, remedies)


def copies(seen: Seen) -> Iterator[Diagnosis]:
    """Units that start equal and stay equal, or at zero and stay there."""
    moved = with_gradient(seen.run.history)  # a branch behind a zero head has to wait for it
    equal, stuck = seen.recorder.copies, [name for name in seen.recorder.stuck if name not in moved]
    if equal or stuck:
        text = (
            f"All rows of {listed(equal)} are equal, and so are the rows of the gradient: the units of such a layer "
            f"stay copies of one another."
            if equal
            else f"The weights of {listed(stuck)} are 0, and so is their gradient: they stay so."
        )
        remedies = ("draw the weights at random: He or Xavier initialization",)
        spoilt = seen.findings("vanishing", "stalled", "saturated", "exploding", "dead")
        yield Diagnosis("initialization too small", text, 1.0, spoilt, remedies)


_RULES: tuple[Callable[[Seen], Iterator[Diagnosis]], ...] = (crash, head, inputs, target, dead, large, copies)


def ranked(seen: Seen) -> list[Diagnosis]:
    """The likeliest first; what a rule here explains needs no second, weaker cause."""
    own = [diagnosis for rule in _RULES for diagnosis in rule(seen)]
    explained = {finding for diagnosis in own for finding in diagnosis.findings}
    others = [other for other in seen.run.diagnoses if not other.findings or not set(other.findings) <= explained]
    causes = {diagnosis.cause for diagnosis in own}
    others = [other for other in others if other.cause not in causes]
    return sorted([*own, *others], key=lambda diagnosis: -diagnosis.score)
