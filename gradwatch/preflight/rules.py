"""Rules on one pass, or a short training: a batch, a head or an initialization that can't be right."""

from __future__ import annotations

import math

from gradwatch.diagnosis.data import BEYOND
from gradwatch.diagnosis.network import ABOVE, SURPRISE
from gradwatch.diagnosis.ranking import Claim, Rule, ask, explain_no_learning, rule
from gradwatch.preflight.first_pass import LARGE, FirstPass, measure
from gradwatch.records import Diagnosis
from gradwatch.reporting.text import listed
from gradwatch.theory import chi_of, geometric_mean

VERY_LARGE, SMALL = 10 * LARGE, 1e-3  # root mean square of an input; pixels of 0 to 255 have 100 and more
OUTLIER = 100.0  # the largest sample over the median one
# Geometric mean of chi over the blocks. Measured on half `develop` of tests/benchmarks/detection: 1.4 at most in the
# healthy programs without normalization, 5.6 to 15 in the three whose weights are drawn too large.
GROWTH, MIN_BLOCKS = 3.0, 2


@rule("frozen or detached part", 1.0)
def loss_without_graph(seen: FirstPass) -> Claim | None:
    """The backward pass raised since the loss has no graph."""
    return Claim(_trouble(seen), case="no graph") if "does not require grad" in seen.run.trouble else None


@rule("not known", 1.0)
def crash(seen: FirstPass) -> Claim | None:
    """The pass raised something else, or made no step."""
    is_other = seen.run.trouble and "does not require grad" not in seen.run.trouble
    return Claim(_trouble(seen), case="crash") if is_other else None


def _trouble(seen: FirstPass) -> str:
    text = seen.run.trouble.replace("the training raised", "the pass raised")
    return f"{text[:1].upper()}{text[1:]}."


@rule("zero-gradient head", {"one unit": 1.0, "probabilities": 0.9})
def head(seen: FirstPass) -> Claim | None:
    """The head passes no gradient on, or hardly any."""
    found = seen.recorder.head
    if found.over_one:
        text = "The last softmax is over a single unit: its output is 1 whatever the weights are, the gradient 0."
        return Claim(text, seen.found("stalled", "vanishing"), "one unit")
    if found.twice is not None:
        activation, loss = found.twice
        text = f"The loss ({loss}) takes the output of a {activation}, values from 0 to 1, for logits."
        return Claim(text, seen.found("stalled"), "probabilities")
    return None


@rule("outlier batch", {"not finite": 1.0, "sample": 0.8})
def bad_values(seen: FirstPass) -> Claim | None:
    """Inputs or targets hold NaN or Inf, or one sample that is far larger than the others."""
    inputs, target = seen.inputs, None if seen.target is None else measure(seen.target)
    if inputs is not None and inputs.nonfinite:
        return Claim(seen.input_in_words, seen.found("nonfinite"), "not finite")
    if target is not None and target.nonfinite:
        return Claim(f"The targets: {target}.", seen.found("nonfinite"), "not finite")
    is_outlier = inputs is not None and inputs.outlier > OUTLIER
    return Claim(seen.input_in_words, (), "sample") if is_outlier else None


@rule("unscaled input", {"very large": 0.95, "": 0.8})
def unscaled_input(seen: FirstPass) -> Claim | None:
    """The inputs are of another scale than initializations are made for."""
    scale = seen.inputs
    if scale is None or scale.outlier > OUTLIER or not (scale.is_large or 0 < scale.rms < SMALL):
        return None
    about = seen.found("exploding", "saturated", "dead")
    return Claim(seen.input_in_words, about, strength="very large" if scale.rms > VERY_LARGE else "")


@rule("unscaled target", {"binary": 1.0, "out of reach": 0.95, "": 0.8})
def unscaled_target(seen: FirstPass) -> Claim | None:
    """The targets are out of the range of the loss or of the last activation, or far larger than the output."""
    binary, distance, bounded = seen.recorder.head.binary, seen.recorder.head.distance, seen.recorder.head.bounded
    if binary is not None and bool(((binary < 0) | (binary > 1)).any()):
        text = f"Targets of a binary cross-entropy go from {float(binary.min()):.3g} to {float(binary.max()):.3g}."
        return Claim(text, (), "binary")
    if bounded is not None and bounded[1] > BEYOND:
        text = f"The network ends in a {bounded[0]}, and {bounded[1]:.0%} of the targets are beyond its range."
        return Claim(text, (), "out of reach")
    if seen.target is None:
        return None
    scale, output = measure(seen.target), measure(distance[0]).rms if distance is not None else 1.0
    if scale.nonfinite or not scale.rms > LARGE * max(output, 1.0):
        return None
    text = f"The targets: {scale}. The output: root mean square {output:.3g}."
    return Claim(text, seen.found("exploding"))


@rule("shapes broadcast", 1.0)
def shapes_broadcast(seen: FirstPass) -> Claim | None:
    """The loss compares each output with each target."""
    shapes = seen.recorder.head.broadcast
    if not shapes:
        return None
    text = f"The loss broadcasts output and target against each other, shapes {shapes} for N samples."
    return Claim(text, seen.found("broadcast"))


@rule("dead ReLU", 0.9)
def dead(seen: FirstPass) -> Claim | None:
    """No sample of the batch sets off these ReLUs; the layers before them get no gradient."""
    findings = [finding for finding in seen.found("dead") if not finding.step]  # later ones died in training
    if not findings:
        return None
    texts = [f"Before any step {f.value:.0%} of the units of {listed(f.layers)} fire for no sample." for f in findings]
    return Claim(" ".join(texts), (*findings, *seen.found("vanishing", "stalled")), "from the start")


@rule("initialization too large", {"growth": 0.85})
def large_weights(seen: FirstPass) -> Claim | None:
    """The gradient grows with every block, and nothing normalizes."""
    if not seen.history or seen.normalizes:
        return None
    chi = chi_of(seen.first, seen.recorder.spreads, smaller=True)
    if len(chi) < MIN_BLOCKS or not geometric_mean(chi.values()) > GROWTH:
        return None
    growth, low, high = geometric_mean(chi.values()) ** 0.5, min(chi.values()), max(chi.values())
    text = (
        f"Each of {len(chi)} blocks multiplies the gradient by {growth:.2g} (chi {low:.2g} to {high:.2g}; neutral: 1)."
    )
    return Claim(text, seen.found("exploding", "saturated", "vanishing"), "growth")


@rule("initialization too large", {"logits": 0.75})
def large_logits(seen: FirstPass) -> Claim | None:
    """The first loss is far above that of a network that knows nothing."""
    if seen.recorder.head.surprise is None or (seen.inputs is not None and seen.inputs.is_large):  # which is why
        return None
    loss, classes = seen.recorder.head.surprise
    even = math.log(classes) if classes > 1 else math.inf
    if not (math.isfinite(loss) and loss > max(SURPRISE * even, even + ABOVE)):
        return None
    text = f"The first loss is {loss:.3g}; equal logits of {classes} classes would have ln {classes} = {even:.3g}."
    return Claim(text, seen.found("exploding"), "logits")


@rule("initialization too small", {"copies": 1.0})
def copies(seen: FirstPass) -> Claim | None:
    """Units start equal and stay equal, or start at zero and stay there."""
    equal = seen.recorder.copies
    # A branch behind a zero head has to wait for it.
    stuck = [name for name in seen.recorder.stuck if name not in seen.params_with_gradient]
    if not (equal or stuck):
        return None
    text = (
        f"All rows of {listed(equal)} are equal, and so are the rows of the gradient: the units of such a layer stay "
        f"copies of one another."
        if equal
        else f"The weights of {listed(stuck)} are 0, and so is their gradient: they stay 0."
    )
    return Claim(text, seen.found("vanishing", "stalled", "saturated", "exploding", "dead"), "copies")


@rule("frozen or detached part", {"foreign": 0.95})
def foreign(seen: FirstPass) -> Claim | None:
    """Parameters get a gradient and belong to no module: a plain list of layers hides them."""
    shapes = seen.recorder.foreign
    if not shapes:
        return None
    largest = sorted({*shapes}, key=math.prod, reverse=True)
    text = (
        f"{len(shapes)} parameters, of shapes {listed([str(shape) for shape in largest])}, get a gradient and are none "
        f"of the module's: an optimizer of its parameters() does not train them."
    )
    return Claim(text, (), "foreign")


_RULES: tuple[Rule[FirstPass], ...] = (
    loss_without_graph, crash, head, bad_values, shapes_broadcast, unscaled_input, unscaled_target, dead, large_weights,
    large_logits, copies, foreign,
)  # fmt: skip


def diagnoses_of(seen: FirstPass) -> list[Diagnosis]:
    """Return the causes, the likeliest first. What a rule here explains needs no second, weaker cause of the run's."""
    own = explain_no_learning(seen.run.findings, ask(_RULES, seen))
    causes = {diagnosis.cause for diagnosis in own}
    explained = {finding for diagnosis in own for finding in diagnosis.findings}
    others = [
        other
        for other in seen.run.diagnoses
        if other.cause not in causes and not (other.findings and set(other.findings) <= explained)
    ]
    return sorted([*own, *others], key=lambda diagnosis: -diagnosis.score)
