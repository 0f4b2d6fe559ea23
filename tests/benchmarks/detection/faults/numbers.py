"""Numbers that leave their range: float16 with a wrong loss scale, operations without a guard."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from bases import nearest_mean, on_digits, on_digits_adam, on_numbers, on_pixels, rows
from networks import Transformer, mlp
from program import Batch, Case, HalfPrecision, Objective, Program, adam, cross_entropy, pair, r_squared, sgd
from sources import digits, regression
from torch import Tensor, nn
from torch.nn import functional

# A scale so high that float16 overflows has no separate name; the setting to correct is the same.
SCALE = ("precision underflow",)
UNGUARDED = ("unguarded operation",)
WORKING = HalfPrecision(2.0**12)


def weighted(weight: float, network: nn.Module, batch: Batch) -> Tensor:
    """One of several losses, with a small weight."""
    return weight * cross_entropy(network, batch)


def precision() -> list[Case]:
    make = partial(pair, "loss scale", causes=SCALE, from_start=True)
    tiny = partial(adam, eps=1e-16)
    small = replace(on_digits_adam(), objective=partial(weighted, 1e-6), half=HalfPrecision(2.0**20))
    made = partial(Transformer, layers=1, width=16)
    rather = Program(made, rows, partial(weighted, 1e-6), optimizer=tiny(3e-3), half=HalfPrecision(2.0**16), steps=100)
    half = replace(on_digits(), half=WORKING)
    return [
        make("mlp underflow adam", healthy=replace(small, optimizer=tiny(1e-3)), half=HalfPrecision(1.0)),
        make("mlp underflow sgd", healthy=replace(small, optimizer=sgd(5e4)), half=HalfPrecision(1.0)),
        make("transformer underflow", healthy=rather, half=HalfPrecision(1.0)),
        make("cnn underflow", healthy=replace(on_pixels(steps=80), objective=partial(weighted, 1e-7),
             optimizer=tiny(3e-3), half=HalfPrecision(2.0**22)), half=HalfPrecision(1.0)),
        make("mlp overflow", healthy=half, half=HalfPrecision(2.0**24)),
        make("mlp overflow, skipped", healthy=half, half=HalfPrecision(2.0**24, skips=True)),
        make("cnn overflow, skipped", healthy=replace(on_pixels(steps=80), half=WORKING),
             half=HalfPrecision(2.0**22, skips=True)),
    ]  # fmt: skip


def log_of_softmax(guarded: bool, network: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy at a low temperature, by hand or by torch."""
    logits = 30 * network(batch[0])
    if guarded:
        return functional.cross_entropy(logits, batch[1])
    chosen = torch.softmax(logits, 1).gather(1, batch[1][:, None])
    return -chosen.log().mean()


def root_of_square(floor: float, network: nn.Module, batch: Batch) -> Tensor:
    """Distance between two codes of a class less that to another; a sample may be paired with itself."""
    x, y = batch
    code = network(x)
    same = (y[:, None] == y[None, :]).float()
    distance = ((code[:, None] - code[None, :]).square().sum(-1) + floor).sqrt()
    return (same * distance + (1 - same) * (4 - distance).clamp_min(0)).mean()


def likelihood(floor: float, network: nn.Module, batch: Batch) -> Tensor:
    """Gaussian likelihood with a predicted variance, which may reach zero."""
    mean, spread = network(batch[0]).unbind(1)
    variance = torch.relu(spread) + floor
    return (variance.log() + (batch[1][:, 0] - mean).square() / variance).mean()


@torch.no_grad()
def r_squared_of_mean(network: nn.Module, batch: Batch) -> float:
    return r_squared(lambda x: network(x)[:, :1], batch)  # type: ignore[arg-type]  # a function of x is all it needs


class Standardized(nn.Module):
    """Each feature over the batch to deviation 1; in some batches a pixel is the same everywhere."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + self.floor)


class Root(nn.Module):
    """The root of a ReLU, whose slope at zero is infinite."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(x) + self.floor).sqrt()


class Direction(nn.Module):
    """Codes of length 1; a sample whose ReLUs are all off has none."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x / (x.norm(dim=1, keepdim=True) + self.floor)


def standardized(floor: float) -> nn.Module:
    return nn.Sequential(Standardized(floor), mlp(depth=2))


def on_sphere(floor: float) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 6), nn.ReLU(), Direction(floor), nn.Linear(6, 10))


def unguarded() -> list[Case]:
    make = partial(pair, "unguarded operation", causes=UNGUARDED)

    def loss(program: Program, objective: Objective, name: str, **more: object) -> Case:
        safe, bare = (True, False) if objective is log_of_softmax else (1e-4, 0.0)
        return make(
            name, healthy=replace(program, objective=partial(objective, safe), **more),
            objective=partial(objective, bare),
        )  # fmt: skip

    root = partial(mlp, depth=2, gain=1.0)
    two = replace(on_numbers(), network=partial(mlp, 10, 2, depth=2), score=r_squared_of_mean, optimizer=adam(3e-3))
    return [
        loss(on_digits(lr=1e-3), log_of_softmax, "log of softmax"),
        loss(on_pixels(lr=1e-3), log_of_softmax, "log of softmax, cnn"),
        loss(on_digits_adam(), root_of_square, "root of a distance", score=nearest_mean,
             network=partial(mlp, outputs=4, depth=2)),
        loss(replace(two, data=regression), likelihood, "log of a variance"),
        make("batch deviation", healthy=replace(on_digits(), network=partial(standardized, 0.1)),
             network=partial(standardized, 0.0)),
        make("root of a relu", healthy=replace(on_digits_adam(), network=partial(root, act=partial(Root, 1e-3))),
             network=partial(root, act=partial(Root, 0.0))),
        make("direction of nothing", healthy=Program(partial(on_sphere, 1e-3), digits),
             network=partial(on_sphere, 0.0)),
    ]  # fmt: skip


CASES = [*precision(), *unguarded()]
