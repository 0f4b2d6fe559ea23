"""gradwatch as an observer of a run, and its findings and causes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from program import Program
from torch import nn
from torch.optim import Optimizer
from training import Outcome, Unwatched, build, train

import gradwatch


@dataclass(frozen=True)
class Said:
    """One finding, or one cause without a finding.

    Attributes:
        step: at which it opened.
        kind: of the finding, or the name of a published rule.
        layers: named in it.
    """

    step: int
    kind: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """An observed run.

    Attributes:
        outcome: scores and divergence.
        said: findings in the order of steps; then causes named without a finding.
        causes: the causes named, the likeliest first.
    """

    outcome: Outcome
    said: tuple[Said, ...] = ()
    causes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        said = tuple(Said(found["step"], found["kind"], tuple(found["layers"])) for found in data["said"])
        return cls(Outcome(**data["outcome"]), said, tuple(data["causes"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Watching:
    """A Watcher with its defaults, without announcements."""

    def __init__(self, network: nn.Module) -> None:
        self.watcher = gradwatch.watch(network, on_finding=lambda finding: None)

    def begin(self) -> None:
        self.watcher.begin()

    def read(self, optimizer: Optimizer) -> None:
        self.watcher.read(optimizer)

    def end(self, loss: float, *, skipped: bool) -> None:
        self.watcher.end(loss, skipped=skipped)


def causes_of(diagnoses: Sequence[Any]) -> tuple[str, ...]:
    """The causes in the order they are ranked, each once."""
    ranked = sorted(diagnoses, key=lambda diagnosis: -getattr(diagnosis, "score", 0.0))
    return tuple(dict.fromkeys(str(diagnosis.cause) for diagnosis in ranked))


def watched(program: Program, seed: int) -> Run:
    """Train the program under gradwatch."""
    network, optimizer = build(program, seed)
    looking = Watching(network)
    try:
        outcome = train(program, network, optimizer, seed, looking)
    finally:
        looking.watcher.close()
    findings, diagnoses = looking.watcher.findings, looking.watcher.diagnosis()
    said = [Said(finding.step, finding.kind, finding.layers) for finding in findings]
    said += [Said(looking.watcher.steps, f"cause: {d.cause}") for d in diagnoses if not d.findings]
    return Run(outcome, tuple(sorted(said, key=lambda found: found.step)), causes_of(diagnoses))


def unwatched(program: Program, seed: int) -> Run:
    """Train the program unwatched."""
    return Run(train(program, *build(program, seed), seed, Unwatched()))
