"""A Diagnosis: a cause, with the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradwatch.records.finding import Finding

Cause = Literal[
    "saturating activation",
    "initialization too small",
    "initialization too large",
    "learning rate too high",
    "dead ReLU",
    "zero-gradient head",
    "unscaled input",
    "unscaled target",
    "recurrent depth",
    "missing normalization or skip",
    "learning rate too low",
    "missing warm-up",
    "outlier batch",
    "unguarded operation",
    "frozen or detached part",
    "precision underflow",
    "unbounded loss",
    "weight decay too strong",
    "clipping too hard",
    "not known",
]


@dataclass(frozen=True)
class Diagnosis:
    """A cause, how strongly the evidence speaks for it, what it explains, and remedies in the order to try.

    Attributes:
        cause: the cause in a few words.
        evidence: the measured numbers that speak for it, as sentences.
        score: how strongly they do, from 0 to 1.
        findings: what it explains; may be none.
        remedies: what to do, the first thing to try first.

    Example:
        >>> print(Diagnosis("dead ReLU", "90 % of the units never fire.", 0.9, (), ("LeakyReLU", "zero biases")))
        dead ReLU. 90 % of the units never fire. Try: LeakyReLU; zero biases.
    """

    cause: Cause
    evidence: str
    score: float
    findings: tuple[Finding, ...]
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.cause}. {self.evidence} Try: {'; '.join(self.remedies)}."
