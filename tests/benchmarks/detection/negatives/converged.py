"""Healthy programs with small or uneven gradients for a good reason: they have learned, or learn rarely."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from bases import next_character, on_digits, on_digits_adam, on_numbers, on_pixels, on_table
from networks import Characters, cnn, mlp, scaled_
from program import (
    Batch,
    Case,
    Data,
    Program,
    adam,
    cross_entropy,
    healthy,
    optimizer_of,
    r_squared,
    sgd,
    squared_error,
)  # fmt: skip
from sources import TEXT_CLASSES, blobs, digits, ratings, regression, text, waves
from torch import Tensor, nn


def few_digits() -> Data:
    """So few digits that the network soon remembers all."""
    data = digits()
    return Data((data.train[0][:96], data.train[1][:96]), data.test)


def past_the_end() -> list[Case]:
    make = partial(healthy, "past convergence")
    exact = partial(regression, noise=0.0)
    line = Program(partial(nn.Linear, 10, 1), exact, squared_error, r_squared, sgd(0.1), steps=500)
    return [
        make("digits known by heart", replace(on_digits(lr=0.2, steps=500), data=few_digits)),
        make("digits known by heart, adam", replace(on_digits_adam(lr=3e-3, steps=500), data=few_digits)),
        make("wine sgd", on_table("wine", lr=0.2, steps=600)),
        make("breast cancer adam", replace(on_table("breast_cancer", steps=600), optimizer=adam(1e-2))),
        make("blobs", Program(partial(mlp, 12, 4, depth=3, width=32), blobs, optimizer=adam(1e-2), steps=500)),
        make("a line", line),
        make("regression", replace(on_numbers(steps=500), data=exact, optimizer=adam(1e-2))),
        make("cnn adam", replace(on_pixels(steps=400), optimizer=adam(3e-3))),
        make("tanh adam", on_digits_adam(steps=500, act=nn.Tanh, gain=1.0, lr=3e-3)),
    ]


class OnTop(nn.Module):
    """A new head on a backbone that stays as it is."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def backbone() -> nn.Module:
    return OnTop(nn.Sequential(scaled_(nn.Linear(64, 256), 1.4), nn.ReLU()), 256)


def image_backbone() -> nn.Module:
    return OnTop(cnn(depth=2, channels=16)[:-1], 256)


class Factors(nn.Module):
    """Ratings from a vector for each user and item; a batch uses few of them."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.people, self.things = nn.Embedding(60, 8, sparse=sparse), nn.Embedding(50, 8, sparse=sparse)
        for table in (self.people, self.things):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.people(x[:, 0]) * self.things(x[:, 1])).sum(1, keepdim=True)


class Experts(nn.Module):
    """The best of several experts answers; some are hardly ever chosen."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(64, count)
        self.experts = nn.ModuleList(mlp(64, 32, depth=1, width=32) for _ in range(count))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 32)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out = out.index_put((mine,), expert(x[mine]) * weights[mine, None])
        return self.head(out)


class TwoHeads(nn.Module):
    """A trunk with two heads; a batch belongs to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = mlp(64, 64, depth=2), nn.Linear(64, 10), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.trunk(x).relu())


def by_turns(network: nn.Module, batch: Batch) -> Tensor:
    """The second head's turn comes with the odd sums of labels, so at random."""
    x, y = batch
    if not isinstance(network, TwoHeads) or int(y.sum()) % 4:
        return cross_entropy(network, batch)
    return nn.functional.cross_entropy(network.second(network.trunk(x).relu()), y % 2)


def rarely() -> list[Case]:
    make = partial(healthy, "parts that rest")
    factors = Program(partial(Factors, False), ratings, squared_error, r_squared, adam(1e-2), steps=300)
    words = Program(partial(Characters, TEXT_CLASSES), text, next_character, optimizer=adam(1e-2), batch_size=4)
    return [
        make("frozen backbone", Program(backbone, digits, optimizer=sgd(0.05))),
        make("frozen convolutions", Program(image_backbone, partial(digits, (1, 8, 8)), optimizer=adam(5e-3))),
        make("matrix factorization", factors),
        make("sparse embeddings", replace(factors, network=partial(Factors, True),
             optimizer=partial(optimizer_of, torch.optim.SparseAdam, lr=1e-2))),
        make("rare characters", words),
        make("four experts", Program(partial(Experts, 4), digits, optimizer=adam(3e-3))),
        make("sixteen experts", Program(partial(Experts, 16), digits, optimizer=adam(3e-3), steps=100)),
        make("two heads by turns", Program(TwoHeads, digits, by_turns, optimizer=sgd(0.05))),
        make("an oscillation", Program(partial(mlp, 1, 1, depth=3, width=32, act=nn.Tanh, gain=1.0), waves,
             squared_error, r_squared, adam(5e-3), steps=300)),
    ]  # fmt: skip


CASES = [*past_the_end(), *rarely()]
