"""The score of a program, and if gradwatch says the right thing of it in time."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field

import torch
from updates.programs import PROGRAMS, SICK
from updates.programs_base import MEASURED, Heard, Program, Watch

HARM = 0.05
GROUP = re.compile(r"\bparameter groups? \w+ \d")  # as evidence names one: "parameter group Adam 0"


@dataclass(frozen=True)
class Said:
    """The words on one run of a sick program, held against what is right.

    Attributes:
        found: an accepted finding opened within the first measured steps; or an accepted cause without a finding was
            there after them, where that is enough.
        step: number of the step, from 1, in which the first accepted finding opened; 0 where none did.
        named: the parameter is among the finding's layers; or it, or a parameter group, is in the cause's evidence.
        first: an accepted cause comes first after the first measured steps.
        kinds, causes: all that was said by then.
        broken: the parts of the watching that failed.
    """

    found: bool
    step: int
    named: bool
    first: bool
    kinds: tuple[str, ...]
    causes: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Return True if the program was found in time, with parameter and cause."""
        return self.found and self.named and self.first


@dataclass(frozen=True)
class Accused:
    """All that is said on one run of a program without a bug."""

    kinds: tuple[str, ...]
    causes: tuple[str, ...]
    broken: tuple[str, ...]
    warned: tuple[str, ...] = ()
    messages: tuple[str, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.kinds or self.causes or self.broken or self.warned)


def run(program: Program, is_sick: bool, seed: int, on: bool, short: bool = False) -> tuple[float, Heard, list[str]]:
    """Return the score, what was heard, and the warnings of gradwatch's."""
    torch.manual_seed(seed)
    watch = Watch(on, short)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score = program.run(is_sick, watch)
    spoken = [str(warning.message) for warning in caught if str(warning.message).startswith("gradwatch: ")]
    return score, watch.heard, spoken


def said(program: Program, heard: Heard) -> Said:
    early = [(step, finding) for step, finding in heard.opened if step <= MEASURED]
    right = [(step, finding) for step, finding in early if finding.kind in program.kinds]
    causes = heard.early or []
    accepted = [cause for cause in causes if cause.cause in program.causes]
    names = {name for _, finding in right for name in finding.layers}
    evidence = " ".join(cause.evidence for cause in accepted)
    return Said(
        found=bool(right or (accepted and not program.needs_finding)),
        step=right[0][0] if right else 0,
        named=program.param is None or _is_named(program.param, names, evidence),
        first=bool(causes) and causes[0].cause in program.causes,
        kinds=tuple(dict.fromkeys(finding.kind for _, finding in early)),
        causes=tuple(cause.cause for cause in causes),
        broken=tuple(heard.broken),
    )


def _is_named(param: str, names: set[str], evidence: str) -> bool:
    layer = param.rpartition(".")[0]
    ends = tuple(f".{name}" for name in (param, layer))
    return any(f".{name}".endswith(ends) for name in names) or param in evidence or bool(GROUP.search(evidence))


def accused(heard: Heard, spoken: list[str]) -> Accused:
    findings = [finding for _, finding in heard.opened]
    causes = [*(heard.early or []), *heard.late]
    return Accused(
        tuple(dict.fromkeys(finding.kind for finding in findings)),
        tuple(dict.fromkeys(cause.cause for cause in causes)),
        tuple(heard.broken),
        tuple(dict.fromkeys(spoken)),
        (*(finding.message for finding in findings), *(str(cause) for cause in causes)),
    )


@dataclass(frozen=True)
class Result:
    """The mean scores of a program and its twin, unwatched, and the words on both."""

    name: str
    program: Program
    scores: tuple[float, float]
    said: list[Said]
    said_of_twin: list[Accused]

    @property
    def harms(self) -> bool:
        """Return True if the program has a bug and the bug does harm."""
        return bool(self.program.causes) and not self.scores[0] > self.scores[1] - HARM


def scores(program: Program, is_sick: bool, seeds: int) -> float:
    return sum(run(program, is_sick, seed, False)[0] for seed in range(seeds)) / seeds


def judge(name: str, seeds: int) -> Result:
    """Judge a sick program and its twin, or a healthy one, which is its own twin."""
    program, is_sick = PROGRAMS[name], name in SICK
    twin = scores(program, False, seeds)
    own = scores(program, True, seeds) if is_sick else twin
    heard = [run(program, True, seed, True)[1] for seed in range(seeds * is_sick)]
    healthy = [accused(*run(program, False, seed, True)[1:]) for seed in range(seeds)]
    return Result(name, program, (own, twin), [said(program, words) for words in heard], healthy)
