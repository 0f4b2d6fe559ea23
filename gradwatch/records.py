"""The records that travel between rooms: Snapshot, Finding, Diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradwatch.plain_values import as_names, as_number, as_step, of_type
from gradwatch.shown import Shown
from gradwatch.snapshot import ARRAYS, COLUMNS, NAMES, Array, Snapshot

__all__ = [
    "ARRAYS", "COLUMNS", "NAMES", "Array", "Cause", "Detector", "Diagnoses", "Diagnosis", "Finding", "Findings",
    "GradientError", "GradientWarning", "Kind", "Severity", "Snapshot", "Snapshots", "some_of",
]  # fmt: skip

Kind = Literal[
    "vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "spike",
    "unmoved", "carried-over", "idle-clip", "out-of-sync", "broadcast", "not-learning",
]  # fmt: skip
Severity = Literal["warning", "error"]


@dataclass(frozen=True)
class Finding(Shown):
    """A problem: it opens at ``step``, lasts, and closes at ``closed_step``.

    Attributes:
        kind: one of ``Kind``'s, such as ``vanishing``, or a name of your choice.
        layers: the layers (or parameters, or quantities such as ``loss``) it is about, in network order.
        step: optimizer step at which it began.
        value: the measured number.
        threshold: the number it is compared with.
        message: a sentence with value, threshold and place.
        severity: ``"error"`` where training can't go on (NaN, Inf), else ``"warning"``.
        closed_step: optimizer step at which it was gone; None while it lasts.
        case: the form of the problem, where a kind has several, such as ``rate zero`` of ``unmoved``.
        latest, worst: step and value where it was last seen, and where the value was farthest beyond the threshold;
            None where it was seen only as it opened. Layers, value and message stay those of the opening.

    Example:
        >>> Finding("vanishing", ("first",), step=3, value=1e-7, threshold=1e-3, message="it vanishes").is_open
        True
    """

    kind: str
    layers: tuple[str, ...]
    step: int
    value: float
    threshold: float
    message: str
    severity: Severity = "warning"
    closed_step: int | None = None
    case: str = ""
    latest: tuple[int, float] | None = None
    worst: tuple[int, float] | None = None

    @property
    def is_open(self) -> bool:
        """Return True if the problem was still there at the last measured step."""
        return self.closed_step is None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain numbers, texts and lists, for a checkpoint or JSON.

        A detector of the user's may have put numbers of numpy or torch into it.
        """
        closed = None if self.closed_step is None else int(self.closed_step)
        numbers = {"step": int(self.step), "value": float(self.value), "threshold": float(self.threshold)}
        plain = {**vars(self), "layers": list(self.layers), **numbers, "closed_step": closed}
        seen = {name: (value := getattr(self, name)) and [int(value[0]), float(value[1])] for name in _SEEN}
        return {name: value for name, value in {**plain, **seen}.items() if value or name not in ("case", *_SEEN)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """Return the Finding that :meth:`to_dict` was called on, or raise one of ``DAMAGE``."""
        texts = [name for name in ("kind", "message", "severity", "case") if name in plain]
        given: dict[str, Any] = {name: of_type(str, plain[name]) for name in texts}
        given |= {name: as_number(plain[name]) for name in ("value", "threshold")}
        closed = plain.get("closed_step")
        given["closed_step"] = None if closed is None else as_step(closed)
        for name in _SEEN:
            if plain.get(name) is not None:
                step, value = of_type(list, plain[name])
                given[name] = as_step(step), as_number(value)
        return cls(layers=as_names(plain["layers"]), step=as_step(plain["step"]), **given)


class Findings(Shown, list[Finding]):
    """A list of Findings, which a notebook shows as a table."""


class Snapshots(Shown, list[Snapshot]):
    """A list of Snapshots; a notebook shows the latest."""


def some_of(names: Sequence[str]) -> str:
    """Return the first names and how many more there are, for a message.

    Example:
        >>> some_of(["a", "b", "c", "d", "e"]), some_of(["a"])
        ('a, b, c and 2 more', 'a')
    """
    first, more = ", ".join(names[:3]), len(names) - 3
    return f"{first} and {more} more" if more > 0 else first


_SEEN = ("latest", "worst")


class GradientWarning(UserWarning):
    """Emitted when a finding opens and ``on_finding`` is ``"warn"``."""


class GradientError(RuntimeError):
    """Raised when a finding opens and ``on_finding`` is ``"raise"``.

    Attributes:
        finding: the one that opened.
        cause: its likely cause in words, as far as it is known by then.
    """

    def __init__(self, finding: Finding, cause: str = "") -> None:
        super().__init__(f"{finding.message} {cause}".strip())
        self.finding, self.cause = finding, cause

    def __reduce__(self) -> tuple[type[GradientError], tuple[Finding, str]]:
        return type(self), (self.finding, self.cause)


Detector = Callable[[Snapshot], "Iterable[Finding] | Finding | None"]
"""A callable that looks at a Snapshot and returns the problems it finds, if any. A plain function is one."""


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
    "gradients are not zeroed",
    "step without effect",
    "clip without effect",
    "replicas out of sync",
    "shapes broadcast",
    "unbounded activation",
    "posterior collapse",
    "ignored labels",
    "constant reward",
    "not known",
]


@dataclass(frozen=True)
class Diagnosis(Shown):
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

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON; a finding as its kind, step and layers."""
        findings = [[finding.kind, int(finding.step), list(finding.layers)] for finding in self.findings]
        plain = {"cause": self.cause, "evidence": self.evidence, "score": float(self.score), "findings": findings}
        return {**plain, "remedies": list(self.remedies)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], findings: Iterable[Finding]) -> Diagnosis:
        """Return the Diagnosis that :meth:`to_dict` was called on; it explains those of its findings that are given.

        Raises:
            DAMAGE: any of these errors, for a value of the wrong type.
        """
        named = [(of_type(str, kind), as_step(step), as_names(layers)) for kind, step, layers in plain["findings"]]
        found = tuple(each for each in findings if any(_is_named(each, *name) for name in named))
        cause: Any = of_type(str, plain["cause"])  # a later version may know others
        score, remedies = as_number(plain["score"]), as_names(plain["remedies"])
        return cls(cause, of_type(str, plain["evidence"]), score, found, remedies)


def _is_named(finding: Finding, kind: str, step: int, layers: Sequence[str]) -> bool:
    return (finding.kind, finding.step) == (kind, step) and (
        finding.layers == layers or bool({*finding.layers} & {*layers})
    )


class Diagnoses(Shown, list[Diagnosis]):
    """A list of Diagnoses, the likeliest first, which a notebook shows as a table."""
