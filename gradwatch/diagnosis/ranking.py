"""The engine of rules: each weighs the evidence for one cause; their answers are ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from gradwatch.causes import advice
from gradwatch.diagnosis.evidence import Evidence
from gradwatch.progress import DOES_WELL
from gradwatch.records import Cause, Diagnosis, Finding, Kind

E = TypeVar("E", bound=Evidence)
NOT_LEARNING: Kind = "not-learning"
_UNEXPLAINED = 0.1  # the score of what no rule explains: below that of every rule


@dataclass(frozen=True)
class Claim:
    """The answer of a rule that finds its cause.

    Attributes:
        evidence: the measured numbers that speak for the cause, as sentences.
        findings: the findings that it explains.
        case: the form of the cause, on which the advice depends.
        strength: which of the rule's scores it has; None for that of the case.
    """

    evidence: str
    findings: tuple[Finding, ...] = ()
    case: str = ""
    strength: str | None = None


@dataclass(frozen=True)
class Rule(Generic[E]):
    """A cause, and the function that weighs the evidence for it.

    Attributes:
        scores: case -> how strongly it speaks for the cause, 0 to 1; the key "" holds for all other cases. Only the
            order of scores matters. They were chosen on half ``develop`` of ``tests/benchmarks/detection``, so that
            the right cause stands first there.
        weigh: returns a Claim, or None where the cause is not seen.
        from_start: ask only where the first steps of the run are known.
    """

    cause: Cause
    scores: Mapping[str, float]
    weigh: Callable[[E], Claim | None]
    from_start: bool = False

    def __call__(self, evidence: E) -> Diagnosis | None:
        """Return the diagnosis, with the advice for its case; None where the cause is not seen."""
        claim = self.weigh(evidence) if evidence.saw_start or not self.from_start else None
        if claim is None:
            return None
        kinds = evidence.first.kinds if evidence.history else ()
        remedies = advice(self.cause, claim.case, kinds, evidence.in_use)
        strength = claim.case if claim.strength is None else claim.strength
        score = self.scores[strength if strength in self.scores else ""]
        return Diagnosis(self.cause, claim.evidence.strip(), score, claim.findings, remedies)


def rule(
    cause: Cause, scores: float | Mapping[str, float], *, from_start: bool = False
) -> Callable[[Callable[[E], Claim | None]], Rule[E]]:
    """Make a rule of a function.

    Example:
        >>> @rule("unbounded loss", 0.9)
        ... def falls_without_end(evidence):
        ...     return Claim("It fell below -100.") if evidence.losses.min() < -100 else None
        >>> from gradwatch.records import Snapshot
        >>> falls_without_end(Evidence((), [Snapshot(0, (), trace_step=[0], trace_loss=[-1e6])])).cause
        'unbounded loss'
    """
    by_case = {"": scores} if isinstance(scores, (int, float)) else scores
    return lambda weigh: Rule(cause, by_case, weigh, from_start)


# A cause, and what it brings about: where both are seen, the second is not told as the first thing that is wrong.
# Only what follows in every run is here. Where a gradient has come down to nothing, weight decay, or Adam's momentum of
# noise, is all that still moves the weights. Where a rate, a scale or an activation blows numbers up, units die and
# operations overflow.
_NO_GRADIENT: tuple[Cause, ...] = ("weight decay too strong", "learning rate too low")
_BLOWN_UP: tuple[Cause, ...] = ("unguarded operation", "outlier batch", "dead ReLU")
_NOTHING_ASKED: tuple[Cause, ...] = (
    "zero-gradient head", "clip without effect", "step without effect", *_NO_GRADIENT, *_BLOWN_UP
)  # fmt: skip
BRINGS_ABOUT: Mapping[Cause, tuple[Cause, ...]] = {
    "gradients are not zeroed": ("learning rate too high", "missing warm-up", "clipping too hard", *_BLOWN_UP),
    "shapes broadcast": ("unscaled target", *_NO_GRADIENT, "missing warm-up"),
    "frozen or detached part": ("weight decay too strong", "clip without effect", "initialization too small"),
    "zero-gradient head": ("dead ReLU", *_NO_GRADIENT),
    "ignored labels": _NOTHING_ASKED,
    "constant reward": _NOTHING_ASKED,
    "saturating activation": _NO_GRADIENT,
    "initialization too small": ("step without effect", *_NO_GRADIENT),
    "missing normalization or skip": ("step without effect", *_NO_GRADIENT),
    "recurrent depth": _NO_GRADIENT,
    "clipping too hard": _NO_GRADIENT,
    "precision underflow": _NO_GRADIENT,
    "unscaled input": ("initialization too large", "missing normalization or skip", "unguarded operation"),
    "unscaled target": ("unguarded operation",),
}


def causes_first(answers: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Return the answers, the strongest first, and none above one that brings it about.

    A consequence gets a score below that of its cause. It is none if what it explains began before: its earliest
    finding comes before the earliest one of the cause.

    Example:
        >>> decay = Diagnosis("weight decay too strong", "They shrink.", 0.85, (), ())
        >>> faded = Diagnosis("missing normalization or skip", "It fades.", 0.7, (), ())
        >>> [answer.cause for answer in causes_first([decay, faded])]
        ['missing normalization or skip', 'weight decay too strong']
    """
    ranked = list(answers)
    for _ in BRINGS_ABOUT:  # once a link of the longest chain
        ranked = [_below_its_causes(answer, ranked) for answer in ranked]
    return sorted(ranked, key=lambda answer: (-answer.score, -len(answer.findings)))


_BELOW = 0.99  # the score of a consequence over that of its cause, where it would stand above it


def _below_its_causes(answer: Diagnosis, all_of_them: Sequence[Diagnosis]) -> Diagnosis:
    caps = [_BELOW * cause.score for cause in all_of_them if _follows(answer, cause)]
    return replace(answer, score=min([answer.score, *caps]))


def _follows(answer: Diagnosis, cause: Diagnosis) -> bool:
    if answer.cause not in BRINGS_ABOUT.get(cause.cause, ()):
        return False
    began, first = (min((f.step for f in each.findings), default=-1) for each in (answer, cause))
    return -1 in (began, first) or began >= first


def ask(rules: Iterable[Rule[E]], evidence: E) -> list[Diagnosis]:
    """Return the answers of all rules, the strongest first; of equal ones the one that explains more.

    Several answers that name the same cause become one, with the evidence of all.
    """
    with np.errstate(all="ignore"):  # NaN and Inf are what rules look for
        answers = [answer for each in rules if (answer := each(evidence)) is not None]
    answers = causes_first(answers)
    merged: dict[str, Diagnosis] = {}
    for answer in answers:
        if first := merged.get(answer.cause):
            answer = replace(first, evidence=f"{first.evidence} {answer.evidence}")
        merged[answer.cause] = answer
    return list(merged.values())


def explain_no_learning(findings: Sequence[Finding], answers: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Return the answers, the likeliest of which explains too that the run does not learn, if none does.

    Example:
        >>> stuck = Finding("not-learning", ("loss",), 60, 2.3, 2.3, "it stays.")
        >>> answers = [Diagnosis("dead ReLU", "", 0.9, (), ()), Diagnosis("unscaled input", "", 0.8, (), ())]
        >>> [len(answer.findings) for answer in explain_no_learning([stuck], answers)]
        [1, 0]
    """
    explained = {finding for answer in answers for finding in answer.findings}
    left = tuple(finding for finding in findings if finding.kind == NOT_LEARNING and finding not in explained)
    if not (left and answers):
        return list(answers)
    return [replace(answers[0], findings=(*answers[0].findings, *left)), *answers[1:]]


def unexplained(evidence: Evidence, answers: Sequence[Diagnosis]) -> Iterator[Diagnosis]:
    """Yield one diagnosis of cause ``not known`` for the findings that no answer explains, unless the run learns."""
    explained = {finding for answer in answers for finding in answer.findings}
    left = tuple(finding for finding in evidence.findings if finding not in explained)
    is_stuck = any(finding.kind == NOT_LEARNING for finding in left)
    if left and (is_stuck or not evidence.loss_fall > DOES_WELL):
        texts = dict.fromkeys(finding.message for finding in left)
        if all(finding.kind == NOT_LEARNING for finding in left):
            texts["No gradient fault found."] = None
        text = " ".join(texts)
        yield Diagnosis("not known", text, _UNEXPLAINED, left, advice("not known", left[0].kind))
