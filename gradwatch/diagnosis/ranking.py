"""The engine of rules: each weighs the evidence for one cause; their answers are ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from gradwatch.causes import advice
from gradwatch.diagnosis.evidence import LEARNS, Evidence
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
        remedies = advice(self.cause, claim.case, kinds)
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


def ask(rules: Iterable[Rule[E]], evidence: E) -> list[Diagnosis]:
    """Return the answers of all rules, the strongest first; of equal ones the one that explains more.

    Several answers that name the same cause become one, with the evidence of all.
    """
    with np.errstate(all="ignore"):  # NaN and Inf are what rules look for
        answers = [answer for each in rules if (answer := each(evidence)) is not None]
    answers.sort(key=lambda answer: (-answer.score, -len(answer.findings)))
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
    if left and (is_stuck or not evidence.loss_fall > LEARNS):
        texts = dict.fromkeys(finding.message for finding in left)
        if all(finding.kind == NOT_LEARNING for finding in left):
            texts["No gradient fault found."] = None
        text = " ".join(texts)
        yield Diagnosis("not known", text, _UNEXPLAINED, left, advice("not known", left[0].kind))
