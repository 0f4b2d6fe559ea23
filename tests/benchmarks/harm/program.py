"""A short training with an outcome of its own: a loss on held-out data that never depends on gradwatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradwatch

Rule = Callable[[Iterable[nn.Parameter]], Optimizer]
Loss = Callable[[nn.Module, int], Tensor]
sgd = partial(partial, torch.optim.SGD)
adam = partial(partial, torch.optim.Adam)

LEARNS, SPOILT = 0.75, 2.0  # of the first held-out loss; times the lowest one on the way


@dataclass(frozen=True)
class Program:
    """A training.

    Attributes:
        network: makes the model.
        loss: takes the model and a number of a batch; numbers below zero are held-out data.
        rule: makes the optimizer.
        steps: to train.
        before_step: is called with the model, the optimizer and the step; how a fault comes in midway.
        score: held-out measure that falls as the model learns; None takes the mean loss of eight held-out batches.
    """

    network: Callable[[], nn.Module]
    loss: Loss
    rule: Rule = sgd(lr=0.1)
    steps: int = 300
    before_step: Callable[[nn.Module, Optimizer, int], object] | None = None
    score: Callable[[nn.Module], float] | None = None


@dataclass(frozen=True)
class Outcome:
    """Held-out score before and after, and the lowest on the way."""

    before: float
    after: float
    lowest: float

    @property
    def is_healthy(self) -> bool:
        """Return True if the run has learned, and what it had learned is not lost."""
        if not math.isfinite(self.after):
            return False
        fell = self.before - self.after >= (1 - LEARNS) * abs(self.before)
        return fell and (self.lowest <= 0 or self.after <= SPOILT * max(self.lowest, 0.1 * abs(self.before)))


def held_out(program: Program, network: nn.Module) -> float:
    network.eval()
    with torch.no_grad():
        if program.score is not None:
            value = program.score(network)
        else:
            value = sum(float(program.loss(network, -i)) for i in range(1, 9)) / 8
    network.train()
    return value


def run(program: Program, seed: int, **settings: Any) -> tuple[Outcome, gradwatch.Watcher]:
    """Train under a Watcher with its defaults, or other settings; watching changes no bit of the training."""
    torch.manual_seed(seed)
    network = program.network()
    rule = program.rule(network.parameters())
    scores = [held_out(program, network)]
    torch.manual_seed(seed + 1)
    with gradwatch.watch(network, on_finding=lambda finding: None, **settings) as watcher:
        for step in range(program.steps):
            if program.before_step is not None:
                program.before_step(network, rule, step)
            rule.zero_grad()
            loss = program.loss(network, step)
            loss.backward()
            watcher.step(rule, loss.detach())
            if (step + 1) % max(program.steps // 10, 1) == 0:
                watcher_paused_score(watcher, program, network, scores)
    return Outcome(scores[0], scores[-1], min(s for s in scores if s == s)), watcher


def watcher_paused_score(watcher: gradwatch.Watcher, program: Program, network: nn.Module, scores: list[float]) -> None:
    watcher.pause()
    state = torch.get_rng_state()
    scores.append(held_out(program, network))
    torch.set_rng_state(state)
    watcher.resume()
