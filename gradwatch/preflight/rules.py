"""What is wrong with a batch, seen in one pass: inputs and targets of another scale, or out of reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from gradwatch.diagnosis.evidence import with_gradient
from gradwatch.layer_kinds import is_normalization
from gradwatch.preflight.first_pass import LARGE, Seen, measure
from gradwatch.records import Diagnosis
from gradwatch.reporting.text import listed
from gradwatch.theory import chi_of, typical

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


# Geometric mean of chi over the blocks. Measured on the detection benchmark's programs for developing: 1.4 at most in
# the healthy ones without normalization, 5.6 to 15 in the three whose weights are drawn too large.
_GROWTH = 3.0
_BLOCKS = 2
# A first cross-entropy of so many times ln C, and so much above it. Logits of variance s^2 have about ln C + s^2 / 2;
# the first loss of a network that knows nothing should be ln C (A. Karpathy, Neural networks: zero to hero, 2022).
_SURPRISE, _ABOVE = 3.0, 5.0


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
    if not seen.run.history or any(map(is_normalization, seen.run.history[0].kinds)):
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


def surprise(seen: Seen) -> Iterator[Diagnosis]:
    """Logits so large that the first loss is far above that of a network that knows nothing."""
    if seen.recorder.head.surprise is None:
        return
    if seen.inputs is not None and seen.inputs.is_large:
        return  # which is why
    loss, classes = seen.recorder.head.surprise
    even = math.log(classes) if classes > 1 else math.inf
    if math.isfinite(loss) and loss > max(_SURPRISE * even, even + _ABOVE):
        text = f"The first loss is {loss:.3g}; equal logits of {classes} classes would have ln {classes} = {even:.3g}."
        remedies = ("smaller weights in the last layer, and in embeddings tied to it", "standardized inputs")
        yield Diagnosis("initialization too large", text, 0.75, seen.findings("exploding"), remedies)


def foreign(seen: Seen) -> Iterator[Diagnosis]:
    """Parameters that get a gradient and that the module does not have: a plain list of layers hides them."""
    shapes = seen.recorder.foreign
    if shapes:
        largest = sorted({*shapes}, key=math.prod, reverse=True)
        text = (
            f"{len(shapes)} parameters, of shapes {listed([str(shape) for shape in largest])}, get a gradient and are "
            f"none of the module's: an optimizer of its parameters() does not train them."
        )
        remedies = ("nn.ModuleList, or nn.ModuleDict, in place of a plain list or dict", "nn.ParameterList")
        yield Diagnosis("frozen or detached part", text, 0.95, (), remedies)


_RULES: tuple[Callable[[Seen], Iterator[Diagnosis]], ...] = (
    crash,
    head,
    inputs,
    target,
    reach,
    dead,
    large,
    surprise,
    copies,
    foreign,
)


def ranked(seen: Seen) -> list[Diagnosis]:
    """The likeliest first; what a rule here explains needs no second, weaker cause."""
    own = _merged(diagnosis for rule in _RULES for diagnosis in rule(seen))
    explained = {finding for diagnosis in own for finding in diagnosis.findings}
    others = [other for other in seen.run.diagnoses if not other.findings or not set(other.findings) <= explained]
    causes = {diagnosis.cause for diagnosis in own}
    others = [other for other in others if other.cause not in causes]
    return sorted([*own, *others], key=lambda diagnosis: -diagnosis.score)


def _merged(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """One of each cause, the strongest, with the evidence of all."""
    causes: dict[str, Diagnosis] = {}
    for new in sorted(diagnoses, key=lambda diagnosis: -diagnosis.score):
        old = causes.get(new.cause)
        causes[new.cause] = new if old is None else replace(old, evidence=f"{old.evidence} {new.evidence}")
    return list(causes.values())
