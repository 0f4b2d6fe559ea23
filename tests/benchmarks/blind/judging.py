"""The score of a program, and what gradwatch says of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from blind.programs_base import Program, Split, Training
from blind.programs_cuts_list import CUTS
from blind.programs_healthy import HEALTHY
from blind.programs_losses import LOSSES
from blind.programs_rates import RATES
from blind.programs_scales_list import SCALES
from blind.programs_sequences_list import SEQUENCES
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.preflight.verdict import check_training

BUGS = {**RATES, **SCALES, **CUTS, **LOSSES, **SEQUENCES}
PROGRAMS = {**BUGS, **HEALTHY}
HARM = 0.05


def loader(data: Split, batch: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(data.inputs, data.targets), batch_size=batch, shuffle=True)


def score(training: Training, seed: int) -> float:
    """Return the score on held-out data of an unwatched training."""
    torch.manual_seed(seed)
    data, network = training.data(), training.network()
    rule = training.optimizer(param for param in network.parameters() if param.requires_grad)
    feed, done = loader(data, training.batch), 0
    while done < training.steps:
        for inputs, targets in feed:
            rule.zero_grad()
            training.loss(network(inputs), targets).backward()
            rule.step()
            done += 1
            if done == training.steps:
                break
    network.eval()
    with torch.no_grad():
        return training.score(network(data.test_inputs), data.test_targets)


@dataclass(frozen=True)
class Said:
    """The report on one run: kinds of findings, causes, and the text for the user.

    All programs train without a crash when they are not watched, so a run that only crashed has found nothing.
    """

    found: bool
    kinds: tuple[str, ...]
    causes: tuple[str, ...]
    text: str


def said(training: Training, seed: int) -> Said:
    torch.manual_seed(seed)
    feed, network = loader(training.data(), training.batch), training.network()
    run = check_training(network, feed, loss=training.loss, optimizer=training.optimizer, steps=training.steps)
    kinds = dict.fromkeys(finding.kind for finding in run.findings)
    return Said(
        bool(run.findings or run.diagnoses), tuple(kinds), tuple(cause.cause for cause in run.diagnoses), str(run)
    )


def scores(training: Training, seeds: int) -> float:
    return sum(score(training, seed) for seed in range(seeds)) / seeds


@dataclass(frozen=True)
class Result:
    """The mean scores of a program and its twin, and the reports on both."""

    name: str
    program: Program
    scores: tuple[float, float]
    said: list[Said]
    said_of_twin: list[Said]

    @property
    def harms(self) -> bool:
        """Return True if the program has a bug and the bug does harm."""
        return bool(self.program.causes) and not self.scores[0] > self.scores[1] - HARM

    def named(self, among: int) -> int:
        """Return the number of runs with an accepted cause among the first ``among``."""
        return sum(bool({*self.program.causes} & {*run.causes[:among]}) for run in self.said)


def judge(name: str, seeds: int) -> Result:
    program = PROGRAMS[name]
    own = scores(program.training, seeds)
    twin = scores(program.fixed, seeds) if program.causes else own
    judged = [said(program.training, seed) for seed in range(seeds)]
    return Result(
        name, program, (own, twin), judged, [said(program.fixed, s) for s in range(seeds * bool(program.causes))]
    )
