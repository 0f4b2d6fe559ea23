"""Run gradwatch's checks on one small training or one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from small_data import Samples
from small_trainings import TRAININGS
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils.data import DataLoader

import gradwatch
from gradwatch.preflight.verdict import check_training
from gradwatch.records import Diagnosis, Finding
from gradwatch.short_runs.batches import endless_batches
from gradwatch.short_runs.loop import call

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "SGD 0.01": partial(SGD, lr=0.01),
    "SGD 0.1": partial(SGD, lr=0.1),
    "SGD 0.01, momentum": partial(SGD, lr=0.01, momentum=0.9),
    "Adam 1e-3": partial(Adam, lr=1e-3),
    "AdamW 3e-4": partial(AdamW, lr=3e-4),
    "Adam 1e-4": partial(Adam, lr=1e-4),
    "RMSprop 1e-3": partial(RMSprop, lr=1e-3),
}
FORMS = ((32, True), (16, True), (32, False), (128, False))  # samples a batch, and whether a DataLoader draws them


@dataclass(frozen=True)
class Judged:
    """The result of a check of one run.

    Attributes:
        network, optimizer, seed: which run; a single pass has no optimizer.
        said: causes, or kinds of findings where no cause is named, each with its message; none for a healthy run.
        losses: before and after the training, over all its samples; none for a single pass.
    """

    network: str
    optimizer: str
    seed: int
    said: Sequence[tuple[str, str]]
    losses: tuple[float, float] | None = None

    @property
    def diverged(self) -> bool:
        """Return True if the loss shows that the run is not healthy."""
        return self.losses is not None and not self.losses[1] <= 2 * self.losses[0]


def part(data: Any, index: Any) -> Any:
    """Some samples of a tensor, or of each of several."""
    return tuple(part(values, index) for values in data) if isinstance(data, tuple) else data[index]


def start(name: str, seed: int) -> tuple[nn.Module, Samples, Any]:
    """A network, the samples it is trained on, and what a training is given, in the form of this seed."""
    torch.manual_seed(seed)
    network, samples = TRAININGS[name].network(), TRAININGS[name].data()
    size, loads = FORMS[seed % len(FORMS)]
    if not loads:
        batch = part(samples, slice(size))
        return network, batch, batch
    count = len(samples[1][0] if isinstance(samples[1], tuple) else samples[1])
    one_by_one: Any = [part(samples, i) for i in range(count)]
    return network, samples, DataLoader(one_by_one, batch_size=size, shuffle=True)


def trained(name: str, seed: int, optimizer: str, steps: int) -> Judged:
    """Return the findings and causes that assert_healthy_gradients would put into its message."""
    network, _, data = start(name, seed)
    settings = {"loss": TRAININGS[name].loss, "optimizer": OPTIMIZERS[optimizer]}
    run = check_training(network, data, steps=steps, **settings)
    said = [*messages(run.diagnoses, run.findings), *([("error", run.trouble)] if run.trouble else [])]
    return Judged(name, optimizer, seed, said, outcome(name, seed, optimizer, steps))


def outcome(name: str, seed: int, optimizer: str, steps: int) -> tuple[float, float]:
    """Return the loss over all samples before and after the same training, unwatched.

    The loss of a batch is too noisy: with 16 samples of noise, the last may be twice the first by chance.
    """
    network, samples, data = start(name, seed)
    loss, rule = TRAININGS[name].loss, OPTIMIZERS[optimizer]
    descent = rule([param for param in network.parameters() if param.requires_grad])
    before = loss(call(network, samples[0]), samples[1]).item()
    torch.manual_seed(0)  # as the checks do
    for inputs, targets in islice(endless_batches(data), steps):
        descent.zero_grad()
        loss(call(network, inputs), targets).backward()
        descent.step()
    return before, loss(call(network, samples[0]), samples[1]).item()


def passed(name: str, seed: int) -> Judged:
    network, samples, _ = start(name, seed)
    batch = part(samples, slice(FORMS[seed % len(FORMS)][0]))
    result = gradwatch.diagnose(network, batch, loss=TRAININGS[name].loss)
    return Judged(name, "", seed, messages(result.diagnoses, ()))


def messages(causes: Iterable[Diagnosis], findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Return the causes, or else the kinds of findings, each with its message."""
    named = [(cause.cause, str(cause)) for cause in causes]
    return named or [(finding.kind, finding.message) for finding in findings]
