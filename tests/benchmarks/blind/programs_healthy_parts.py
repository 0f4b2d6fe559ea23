"""Networks, data and losses of the healthy programs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from blind.programs_base import Split, accuracy, cnn, digits, mlp, split
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam


def trained(network: nn.Module, data: Split, steps: int = 150) -> nn.Module:
    """A network that has learned."""
    rule = Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        part = torch.arange(64 * step, 64 * step + 64) % len(data.inputs)
        rule.zero_grad()
        functional.cross_entropy(network(data.inputs[part]), data.targets[part]).backward()
        rule.step()
    return network


class Tuned(nn.Module):
    """A trained, frozen body that stays in eval mode, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = trained(cnn(norm=True), digits(1, 8, 8)())[:-1].requires_grad_(False)  # type: ignore[index]
        self.head = nn.Linear(256, 10)

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Deep(nn.Module):
    """Twenty residual blocks, normed first; with a scale for each block."""

    def __init__(self, scale: float = 1.0, depth: int = 20) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(depth)
        )
        self.scales = nn.Parameter(torch.full((depth, 64), scale))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * block(x)
        return self.head(self.norm(x))


class Squeezed(nn.Module):
    """A CNN with a gate for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x * self.gate(x.mean((2, 3)))[..., None, None]
        return self.head(functional.max_pool2d(x, 2).flatten(1))


def zero_head() -> nn.Module:
    network = mlp(64, 64, 10)
    nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]
    return network


def mixed() -> Split:
    """Digits mixed with one another, and their labels alike."""
    whole, draw = digits()(), torch.Generator().manual_seed(0)
    other = torch.randperm(len(whole.inputs), generator=draw)
    share = torch.distributions.Beta(0.4, 0.4).sample((len(other), 1))
    labels = functional.one_hot(whole.targets, 10).float()
    inputs = share * whole.inputs + (1 - share) * whole.inputs[other]
    return Split(inputs, share * labels + (1 - share) * labels[other], whole.test_inputs, whole.test_targets)


def noisy(share: float) -> Callable[[], Split]:
    """Digits with some random labels."""

    def made() -> Split:
        whole, draw = digits()(), torch.Generator().manual_seed(0)
        wrong = torch.rand(len(whole.targets), generator=draw) < share
        labels = torch.where(wrong, torch.randint(10, whole.targets.shape, generator=draw), whole.targets)
        return Split(whole.inputs, labels, whole.test_inputs, whole.test_targets)

    return made


def heavy() -> Split:
    """A linear function with heavy-tailed noise; the held-out targets have none."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 8, generator=draw)
    y = x[:, :1] - x[:, 1:2] * x[:, 2:3]
    whole, clean = split(x, y + 0.3 * torch.empty(1200, 1).cauchy_(generator=draw).clamp(-20, 20)), split(x, y)
    return Split(whole.inputs, whole.targets, clean.test_inputs, clean.test_targets)


def rare() -> Split:
    """One in twenty is positive."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 10, generator=draw)
    return split(x, ((x[:, :1] + x[:, 1:2]) > 2.3).float())


def balanced(output: Tensor, y: Tensor) -> float:
    """The mean of both classes' accuracies."""
    return (accuracy(output[y[:, 0] > 0], y[y[:, 0] > 0]) + accuracy(output[y[:, 0] == 0], y[y[:, 0] == 0])) / 2


def focal(output: Tensor, y: Tensor) -> Tensor:
    """Lin et al. 2017, 1708.02002."""
    each = functional.binary_cross_entropy_with_logits(output, y, reduction="none")
    return ((1 - (-each).exp()).square() * (0.9 * y + 0.1 * (1 - y)) * each).mean() * 10


def sparse() -> Split:
    """Words as one in 300, ten in a text, the frequent ones far more often."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(3, (1000,), generator=draw)
    words = (300 * torch.rand(1000, 10, generator=draw) ** 3).long() // 3 * 3 + label[:, None]
    other = torch.randint(300, (1000, 10), generator=draw)
    words = torch.where(torch.rand(1000, 10, generator=draw) < 0.5, words.clamp(max=299), other)
    return split(torch.zeros(1000, 300).scatter_(1, words, 1.0), label)
