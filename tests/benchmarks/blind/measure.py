"""What does gradwatch say of programs that none of its rules was tuned on?

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m blind.measure --csv_file blind.csv

Each program with a bug has a twin in which the one thing is repaired. A bug counts where it does harm: without
gradwatch, the mean score on held-out data over the seeds is worse than the twin's by 0.05, or it is no number. Then
both, and the healthy programs, are judged as ``gradwatch.testing.assert_healthy_gradients`` does. A bug is found where
the run is not healthy; it is named where one of the causes that were agreed beforehand comes first, or among the first
three. ``--programs '[rounding inside]'`` takes some programs. Intervals are Wilson's at 95 %, over the programs' runs as
if these were independent; those of one program are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from blind.programs_base import Program, Split, Training
from blind.programs_cuts import CUTS
from blind.programs_healthy import HEALTHY
from blind.programs_losses import LOSSES
from blind.programs_rates import RATES
from blind.programs_scales_list import SCALES
from blind.programs_sequences import SEQUENCES
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.preflight.judged import judged_training

BUGS = {**RATES, **SCALES, **CUTS, **LOSSES, **SEQUENCES}
PROGRAMS = {**BUGS, **HEALTHY}
HARM = 0.05


def loader(data: Split, batch: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(data.inputs, data.targets), batch_size=batch, shuffle=True)


def score(training: Training, seed: int) -> float:
    """What the training scores on held-out data, unwatched."""
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
    """What gradwatch said of one run: kinds of findings, causes, and what the user reads."""

    healthy: bool
    kinds: tuple[str, ...]
    causes: tuple[str, ...]
    text: str


def said(training: Training, seed: int) -> Said:
    torch.manual_seed(seed)
    feed, network = loader(training.data(), training.batch), training.network()
    run = judged_training(network, feed, loss=training.loss, optimizer=training.optimizer, steps=training.steps)
    kinds = dict.fromkeys(finding.kind for finding in run.findings)
    return Said(run.is_healthy, tuple(kinds), tuple(cause.cause for cause in run.diagnoses), str(run))


@dataclass
class Result:
    """All of one program."""

    name: str
    program: Program
    seeds: int

    @cached_property
    def scores(self) -> tuple[float, float]:
        """The mean score of the program and of its twin."""
        both = (self.program.training, self.program.fixed)
        first, second = (sum(score(one, seed) for seed in range(self.seeds)) / self.seeds for one in both)
        return first, second

    @property
    def harms(self) -> bool:
        return not self.scores[0] <= self.scores[1] - HARM if self.scores[0] != self.scores[0] else (
            self.scores[0] <= self.scores[1] - HARM
        )  # fmt: skip

    @cached_property
    def said(self) -> list[Said]:
        return [said(self.program.training, seed) for seed in range(self.seeds)]

    @cached_property
    def said_of_twin(self) -> list[Said]:
        return [said(self.program.fixed, seed) for seed in range(self.seeds)]
