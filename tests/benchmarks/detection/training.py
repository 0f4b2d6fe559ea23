"""A plain loop that trains a program under an observer, and the outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from program import HalfPrecision, Program
from torch import Tensor, nn
from torch.optim import Optimizer

DIVERGED = 10.0  # times the first loss


class Observer(Protocol):
    """An observer: called when a step begins, when its gradients are there, and with its loss."""

    def begin(self) -> None: ...
    def read(self, optimizer: Optimizer) -> None: ...
    def end(self, loss: float, *, skipped: bool) -> None: ...


class Unwatched:
    """Looks at nothing."""

    def begin(self) -> None: ...
    def read(self, optimizer: Optimizer) -> None: ...
    def end(self, loss: float, *, skipped: bool) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        before, after: the score on the test data before and after training; -1 at the least, and for NaN.
        diverged: the last losses are not finite, or over ten times the first.
        blew_up: the first step with such a loss, None where there was none.
    """

    before: float
    after: float
    diverged: bool
    blew_up: int | None


@contextmanager
def lowered(half: HalfPrecision | None) -> Iterator[None]:
    with torch.autocast("cpu", torch.float16, enabled=half is not None):
        yield


def score(program: Program, network: nn.Module) -> float:
    """The score in evaluation mode, between -1 and 1."""
    was = network.training
    network.eval()
    value = program.score(network, program.data().test)
    network.train(was)
    return -1.0 if math.isnan(value) else max(-1.0, min(1.0, value))


def build(program: Program, seed: int) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(seed)
    network = program.network()
    return network, program.optimizer(network)


def train(program: Program, network: nn.Module, optimizer: Optimizer, seed: int, observer: Observer) -> Outcome:
    """Train to the end, even after the loss diverges: a user's loop would go on too."""
    before = score(program, network)
    torch.manual_seed(seed)
    factors = program.schedule or (lambda step: 1.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    batches, losses = program.batches(seed), []
    for step in range(program.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factors(step)
        optimizer.zero_grad()
        observer.begin()
        loss = sum(_backward(program, network, next(batches)) for _ in range(program.accumulate)) / program.accumulate
        losses.append(loss)
        overflow = _unscale(program.half, optimizer)
        observer.read(optimizer)
        clip(program, network)
        skipped = overflow and program.half is not None and program.half.skips
        if not skipped:
            optimizer.step()
        observer.end(loss, skipped=skipped)
    return outcome(losses, before, score(program, network))


def _backward(program: Program, network: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    with lowered(program.half):
        loss = program.objective(network, batch)
    scale = 1.0 if program.half is None else program.half.scale
    (loss * scale / program.accumulate).backward()
    return float(loss.detach())


def _unscale(half: HalfPrecision | None, optimizer: Optimizer) -> bool:
    """Divide the gradients by the loss scale; return True if one of them is not finite."""
    if half is None:
        return False
    grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    for grad in grads:
        grad.div_(half.scale)
    return not all_finite(grads)


def all_finite(grads: Iterable[Tensor]) -> bool:
    return all(bool(grad.isfinite().all()) for grad in grads)


def clip(program: Program, network: nn.Module) -> None:
    """Clip as a Trainer does with ``gradient_clip_val`` and ``gradient_clip_algorithm``."""
    limit = program.options.get("gradient_clip_val")
    if limit is None:
        return
    params = [param for param in network.parameters() if param.grad is not None]
    if program.options.get("gradient_clip_algorithm", "norm") == "value":
        nn.utils.clip_grad_value_(params, limit)
    else:
        nn.utils.clip_grad_norm_(params, limit)


def outcome(losses: list[float], before: float, after: float) -> Outcome:
    limit = DIVERGED * abs(losses[0]) if math.isfinite(losses[0]) else math.inf
    high = [not math.isfinite(loss) or loss > limit for loss in losses]
    last = high[-3:]
    return Outcome(before, after, all(last), high.index(True) if any(high) else None)
