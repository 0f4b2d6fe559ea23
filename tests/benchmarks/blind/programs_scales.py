"""Bugs in the scale of inputs, targets and first weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from blind.programs_base import (
    Split,
    digits,
    mlp,
    patients,
    split,
    standard,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

mse, adam = functional.mse_loss, partial(Adam, lr=1e-3)
regressor = partial(mlp, 10, 64, 1)


def with_column(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([standard(x)[:, :4], factor * standard(x)[:, 4:5], standard(x)[:, 5:]], 1)


def with_some(value: float, share: float) -> Callable[[Tensor], Tensor]:
    """Some of the values replaced by one that stands for a missing value, or that is wrong."""

    def change(x: Tensor) -> Tensor:
        return x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < share, value)

    return change


def years(first: float) -> Split:
    """Years as targets: ``first`` plus a function of the inputs."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(800, 8, generator=draw)
    return split(x, first + (x[:, :1] + x[:, 1:2] * x[:, 2:3]))


def one_wrong(value: float) -> Callable[[], Split]:
    """Digits; one sample in a thousand has a wrong pixel."""
    return digits(change=lambda x: with_some(value, 2e-5)(standard(x)))


def learned_only(changed: Split) -> Split:
    """Change the data to learn from, not the held-out data."""
    right = patients()
    return Split(changed.inputs, changed.targets, right.test_inputs, right.test_targets)


def drawn(network: nn.Module, weight: Callable[[Tensor], object], *kinds: type[nn.Module]) -> nn.Module:
    for part in network.modules():
        if isinstance(part, kinds or (nn.Linear, nn.Conv2d)):
            weight(part.weight)
    return network


class Residual(nn.Module):
    """Thirty blocks of x + f(x)."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))
        self.head = nn.Linear(64, 10)
        for block in self.blocks:
            nn.init.normal_(block.weight, std=gain / 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


class Tied(nn.Module):
    """An autoencoder whose decoder has the encoder's weights."""

    def __init__(self, start: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(24, 64))
        start(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.weight).relu(), self.weight.T)


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank."""

    def __init__(self, down: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.base = nn.Linear(64, 10).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.empty(8, 64)), nn.Parameter(torch.zeros(10, 8))
        down(self.down)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Normed(nn.Module):
    """Linear, BatchNorm, ReLU, twice."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        norms = [nn.BatchNorm1d(64), nn.BatchNorm1d(64)]
        for norm in norms:
            nn.init.constant_(norm.bias, shift)
        self.body = nn.Sequential(nn.Linear(64, 64), norms[0], nn.ReLU(), nn.Linear(64, 64), norms[1], nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def topics() -> Split:
    """Texts of ten words out of 200, a class for each fifty words that prevail."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(4, (1000,), generator=draw)
    shift = torch.where(
        torch.rand(1000, 10, generator=draw) < 0.5, label[:, None], torch.randint(4, (1000, 10), generator=draw)
    )
    return split(50 * shift + torch.randint(50, (1000, 10), generator=draw), label)


class Texts(nn.Module):
    """The mean of the words' embeddings, and two layers."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(200, 32), mlp(32, 64, 4, act=nn.Tanh)
        nn.init.normal_(self.words.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.words(x).mean(1))


def last_bias(std: float) -> nn.Module:
    network = mlp(64, 64, 10)
    nn.init.normal_(network[-1].bias, std=std)  # type: ignore[arg-type]
    return network
