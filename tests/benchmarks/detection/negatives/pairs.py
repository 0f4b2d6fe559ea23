"""Healthy programs that learn from pairs, agree with their own average, or fit a density or a law."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from bases import nearest_mean
from networks import mlp, scaled_
from program import Batch, Case, Program, adam, healthy, r_squared, sgd
from sources import digits, regression, waves
from torch import Tensor, nn
from torch.nn import functional


def pairs(network: nn.Module, batch: Batch) -> Tensor:
    """Codes of a class near each other, codes of two classes apart by a margin."""
    code, y = network(batch[0]), batch[1]
    same = (y[:, None] == y[None, :]).float()
    square = (code[:, None] - code[None, :]).square().sum(-1)
    return (same * square + (1 - same) * (1 - (square + 1e-6).sqrt()).clamp_min(0).square()).mean()


def contrast(network: nn.Module, batch: Batch) -> Tensor:
    """Two noisy views of a sample find each other among those of the batch."""
    first, second = (functional.normalize(network(batch[0] + 0.3 * torch.randn_like(batch[0])), dim=1) for _ in "ab")
    return functional.cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))


class Teacher(nn.Module):
    """A student, and the moving average of it that it agrees with."""

    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(depth=2)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def agreement(network: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(network, Teacher)
    with torch.no_grad():
        for slow, fast in zip(network.teacher.parameters(), network.student.parameters(), strict=True):
            slow.lerp_(fast, 0.05)
        target = network.teacher(batch[0])
    logits = network.student(batch[0] + 0.1 * torch.randn_like(batch[0]))
    return functional.cross_entropy(logits, batch[1]) + 0.1 * functional.mse_loss(logits, target)


class Mixture(nn.Module):
    """Weights, means and spreads of three normal distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(10, 9, depth=2)

    def forward(self, x: Tensor) -> Tensor:
        weight, mean, _ = self.body(x).chunk(3, 1)
        return (weight.softmax(1) * mean).sum(1, keepdim=True)


def mixture(network: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(network, Mixture)
    weight, mean, spread = network.body(batch[0]).chunk(3, 1)
    width = functional.softplus(spread) + 0.05
    each = weight.log_softmax(1) - width.log() - ((batch[1] - mean) / width).square() / 2
    return -each.logsumexp(1).mean()


def derivative(network: nn.Module, batch: Batch) -> Tensor:
    """Fit the points, and obey y'' = -2y' - 17y, the law that made them."""
    t = batch[0].requires_grad_()
    y = network(t)
    first = torch.autograd.grad(y.sum(), t, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), t, create_graph=True)[0]
    return functional.mse_loss(y, batch[1]) + 1e-4 * (second + 2 * first + 17 * y).square().mean()


def from_pairs() -> list[Case]:
    make = partial(healthy, "pairs and densities")
    codes = Program(partial(mlp, outputs=4, depth=2), digits, pairs, nearest_mean, adam(2e-3))
    drawn = Program(Mixture, regression, mixture, r_squared, adam(3e-3), steps=200)
    physics = partial(mlp, 1, 1, depth=2, width=32, act=nn.Tanh, gain=1.5)
    return [
        make("siamese", codes),
        make("contrast", replace(codes, objective=contrast, network=partial(mlp, outputs=8, depth=2))),
        make("mean teacher", Program(Teacher, digits, agreement, optimizer=sgd(0.05))),
        make("mixture density", drawn),
        make("physics", Program(physics, waves, derivative, r_squared, adam(5e-3), steps=200)),
        make("linear probe", Program(lambda: scaled_(nn.Linear(64, 10), 0.0), digits, optimizer=sgd(0.05))),
    ]


CASES = from_pairs()
