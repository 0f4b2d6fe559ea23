"""The words of the report: the verdict in one sentence, and each cause with what it explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gradwatch.progress import judge_run
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.text import evidence_beyond, listed, number, plural, since

Level = Literal["sick", "watch", "healthy"]
_NO_LAYER = ("loss", "batch", "grad_norm_total", "clip_grad_norm_")  # quantities that a finding may name
_MOST_NAMED = 3  # layers in the verdict; all of them stand below
_MOST_OF_A_KIND = 4  # findings of one kind below one cause, before the others are folded
# Kind of a finding -> the beginning of a sentence, with and without layers to name.
_PHRASES: Mapping[str, tuple[str, str]] = {
    "vanishing": ("The gradient vanishes at {}", "The gradient vanishes"),
    "exploding": ("The gradient explodes at {}", "The gradient explodes"),
    "nonfinite": ("NaN or Inf at {}", "NaN or Inf in the training"),
    "dead": ("Units are dead at {}", "Units are dead"),
    "saturated": ("Units are saturated at {}", "Units are saturated"),
    "stalled": ("No gradient reaches {}", "Parts get no gradient"),
    "unmoved": ("The weights do not move at {}", "Weights do not move"),
    "spike": ("A jump at {}", "The loss or the gradient jumps"),
    "carried-over": ("The gradient of an earlier step is still in {}", "Gradients are carried over"),
    "out-of-sync": ("The processes hold different values of {}", "The processes hold different weights"),
    "idle-clip": ("The clip has no effect", "The clip has no effect"),
    "broadcast": ("Output and target do not fit each other", "Output and target do not fit each other"),
    "not-learning": ("The run does not learn", "The run does not learn"),
}


@dataclass(frozen=True)
class Verdict:
    """The state of a run in one sentence, and if it is sick, where, why, and what to do first.

    Attributes:
        level: ``sick``: something is wrong now. ``watch``: something was, or it is too early to tell.
        sentence: names of layers are between backticks.
        layers: the sick layers of the likeliest cause.
        cause, first: the likeliest cause, and the first thing to do about it; may be empty.
        loss: the course of the loss.
        origin: the operation that made NaN, and its line; empty where none is known.
    """

    level: Level
    sentence: str
    layers: tuple[str, ...] = ()
    cause: str = ""
    first: str = ""
    loss: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Case:
    """A cause with the findings that it explains; without a cause, findings that nothing explains."""

    cause: str
    evidence: str
    remedies: tuple[str, ...]
    shown: tuple[Finding, ...]
    folded: tuple[Finding, ...] = ()

    @property
    def is_open(self) -> bool:
        """Return True if it lasts, or has led to no finding yet."""
        findings = (*self.shown, *self.folded)
        return not findings or any(finding.is_open for finding in findings)


def verdict_of(
    history: Sequence[Snapshot], findings: Sequence[Finding], diagnoses: Sequence[Diagnosis], short: Mapping[str, str]
) -> Verdict:
    """Return the verdict of a run; ``short`` has the names to show for layers.

    Example:
        >>> finding = Finding("vanishing", ("net.a", "net.b"), 3, 1e-7, 1e-3, "it vanishes")
        >>> cause = Diagnosis("saturating activation", "Each Sigmoid takes 0.2.", 0.9, (finding,), ("use ReLU",))
        >>> verdict_of([], [finding], [cause], {"net.a": "a", "net.b": "b"}).sentence
        'The gradient vanishes at `a` and `b`. Likely cause: saturating activation.'
    """
    open_ones = [finding for finding in findings if finding.is_open]
    judgement = judge_run(history, is_suspect=any(finding.kind != "spike" for finding in open_ones))
    loss = str(judgement) if history and judgement.steps else ""
    if judgement.course == "learns" and math.isinf(history[-1].loss):
        loss = f"{loss}, then NaN or Inf"
    origins = [str(s.origin) for s in history if s.origin and any(f.kind == "nonfinite" for f in open_ones)]
    origin = origins[0] if origins else ""
    causes = [d for d in diagnoses if not d.findings or any(f.is_open for f in d.findings)]
    if causes:
        return replace(_sick(causes[0], short), loss=loss, origin=origin)
    if open_ones:
        first = open_ones[0]
        sentence = f"{_phrase(first, first.layers, short)}. {_likely('')}"
        return Verdict("sick", sentence, _layers([first]), loss=loss, origin=origin)
    steps = plural(len(history), "measured step")
    if findings:
        gone = listed([*dict.fromkeys(finding.kind for finding in findings)])
        return Verdict("watch", f"Nothing is wrong now; {plural(len(findings), 'finding')} has passed: {gone}.".replace(
            "findings has", "findings have"), loss=loss)  # fmt: skip
    if judgement.course == "too few steps" or not history:
        return Verdict("watch", f"No fault found so far, in {steps}: too early to tell.", loss=loss)
    return Verdict("healthy", f"Healthy: no finding in {steps}.", loss=loss)


def _sick(diagnosis: Diagnosis, short: Mapping[str, str]) -> Verdict:
    found = [finding for finding in diagnosis.findings if finding.is_open]
    cause = "" if diagnosis.cause == "not known" else diagnosis.cause
    # A run that does not learn is the consequence: what the layers show says more.
    chief = min(found, key=lambda finding: (finding.kind == "not-learning", found.index(finding)), default=None)
    if chief is None:
        sentence = f"{cause[:1].upper()}{cause[1:]}, though nothing has come of it yet."
    else:
        sentence = f"{_phrase(chief, _layers(found), short)}. {_likely(cause)}"
    first = diagnosis.remedies[0] if diagnosis.remedies else ""
    return Verdict("sick", sentence, _layers(found), cause, first)


def _likely(cause: str) -> str:
    return f"Likely cause: {cause}." if cause else "No cause is known."


def _phrase(finding: Finding, layers: Sequence[str], short: Mapping[str, str]) -> str:
    with_layers, without = _PHRASES.get(finding.kind, (f"{finding.kind} at {{}}", finding.kind))
    own = [layer for layer in layers if layer in finding.layers]
    if not own:
        return without
    named = [f"`{short.get(layer, layer)}`" for layer in own[:_MOST_NAMED]]
    if len(own) > _MOST_NAMED:
        named = [*named[: _MOST_NAMED - 1], f"{len(own) - _MOST_NAMED + 1} more"]  # layers or parameters
    return with_layers.format(" and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named))


def _layers(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return the layers of findings once each; quantities such as the loss are left out."""
    return tuple(dict.fromkeys(name for finding in findings for name in finding.layers if name not in _NO_LAYER))


def cases_of(findings: Sequence[Finding], diagnoses: Sequence[Diagnosis]) -> list[Case]:
    """Return the causes, the likeliest first, then the findings that none explains; what is gone comes last.

    A finding that several causes may explain stands with the likeliest.

    Example:
        >>> spikes = [Finding("spike", ("loss",), i, 9.0, 4.0, "it jumps", closed_step=i + 1) for i in range(9)]
        >>> case = cases_of(spikes, [])[0]
        >>> case.cause, len(case.shown), len(case.folded), case.is_open
        ('', 4, 5, False)
    """
    left, cases = list(findings), []
    for diagnosis in diagnoses:
        own = [finding for finding in left if finding in diagnosis.findings]
        left = [finding for finding in left if finding not in own]
        said = _evidence_beyond_all(diagnosis, own)
        cases.append(Case(diagnosis.cause, said, diagnosis.remedies, *_folded(own)))
    cases += [Case("", "", (), *_folded([f for f in left if f.is_open is is_open])) for is_open in (True, False)]
    filled = [case for case in cases if case.shown or case.evidence or case.remedies]
    return sorted(filled, key=lambda case: not case.is_open)


def _evidence_beyond_all(diagnosis: Diagnosis, findings: Sequence[Finding]) -> str:
    for finding in findings:
        rest = evidence_beyond(diagnosis, finding.message)
        if rest != diagnosis.evidence:
            return rest
    return diagnosis.evidence


def _folded(findings: Sequence[Finding]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the findings to show, the open ones first, and those to fold: many of one kind say the same."""
    shown: list[Finding] = []
    folded: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: not finding.is_open):
        is_many = sum(other.kind == finding.kind for other in shown) >= _MOST_OF_A_KIND
        (folded if is_many else shown).append(finding)
    return tuple(shown), tuple(folded)


def state_of(finding: Finding) -> str:
    """Return in words how long a finding lasted, and its number beside the limit.

    Example:
        >>> state_of(Finding("spike", ("loss",), 3, 9.0, 4.0, "it jumps", closed_step=5))
        'steps 3 to 5, now gone; measured 9.00, limit 4.00'
    """
    end = f"since step {finding.step}, still open" if finding.is_open else (
        f"steps {finding.step} to {finding.closed_step}, now gone")  # fmt: skip
    limit = f"; measured {number(finding.value)}, limit {number(finding.threshold)}" if finding.threshold else ""
    return " ".join(filter(None, (f"{end}{limit}{'.' if since(finding) else ''}", since(finding))))
