"""Bugs in single operations, in the loss, in the head and in the precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from blind.programs_base import Split, digits, mlp, split
from torch import Tensor, nn
from torch.nn import functional


def by_hand(guard: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Binary cross-entropy from probabilities; the logits come in, for the score."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        p = output.sigmoid().clamp(guard, 1 - guard)
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean()

    return loss


def counts() -> Split:
    """Counts of 30 words in documents; a few are empty."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(3, (900,), generator=draw)
    rate = 0.1 + 0.5 * (torch.arange(30) % 3 == label[:, None])
    x = torch.poisson(rate, generator=draw)
    x[torch.randperm(900, generator=draw)[:20]] = 0
    return split(x, label)


class Directions(nn.Module):
    """Vectors of length one, and a network."""

    def __init__(self, guard: float) -> None:
        super().__init__()
        self.layers, self.guard = mlp(30, 32, 3), guard

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x / (x.square().sum(1, keepdim=True) + self.guard).sqrt())


class Distances(nn.Module):
    """Logits that also depend on each sample's distances to all of the batch."""

    def __init__(self, guard: float) -> None:
        super().__init__()
        self.body, self.head, self.guard = mlp(64, 32, 8), nn.Linear(8, 10), guard

    def forward(self, x: Tensor) -> Tensor:
        code = self.body(x)
        apart = ((code[:, None] - code[None]).square().sum(2) + self.guard).sqrt()
        return self.head(code) + 0.01 * apart.mean(1, keepdim=True) * torch.arange(10)


class OwnNorm(nn.Module):
    """A normalization by hand, over the batch."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.first, self.last, self.safe = nn.Linear(64, 32), nn.Linear(32, 10), safe

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.training or not self.safe:
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() if self.safe else (x - x.mean(0)) / x.std(0)
        return self.last(x.relu())


def one_left() -> Split:
    """Digits, so many that batches of 32 leave one for the last batch."""
    whole = digits()()
    return Split(whole.inputs[:641], whole.targets[:641], whole.test_inputs, whole.test_targets)


class Angles(nn.Module):
    """The angles between a code of two numbers, which often lies on a class's direction, and each direction."""

    def __init__(self, guard: float) -> None:
        super().__init__()
        self.body, self.classes, self.guard = mlp(64, 32, 2), nn.Parameter(torch.randn(10, 2)), guard

    def forward(self, x: Tensor) -> Tensor:
        cosine = functional.normalize(self.body(x)) @ functional.normalize(self.classes).T
        return 4 * (math.pi - cosine.clamp(self.guard - 1, 1 - self.guard).acos())


class Pooled(nn.Module):
    """Attention over the words that are no padding; 0 is padding."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.words, self.asked, self.head = nn.Embedding(20, 16), nn.Linear(16, 1), nn.Linear(16, 4)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        words = self.words(x)
        weight = self.asked(words)[..., 0].masked_fill(x == 0, self.masked).softmax(1)
        return self.head((weight[..., None] * words).sum(1))


def padded_words() -> Split:
    """Sentences of up to nine words, some of none; the class is that of most words."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(4, (1000,), generator=draw)
    x = 1 + (label[:, None] + 4 * torch.randint(4, (1000, 9), generator=draw)) % 16
    length = torch.randint(3, 10, (1000, 1), generator=draw)
    length[torch.randperm(1000, generator=draw)[:15]] = 0
    return split(x.masked_fill(torch.arange(9) >= length, 0), label)


class Roots(nn.Module):
    """The root of the positive inputs, chosen by torch.where."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.first, self.last, self.safe = nn.Linear(64, 48), nn.Linear(48, 10), safe

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        kept = x.clamp(min=1e-3) if self.safe else x
        return self.last(torch.where(x > 1e-3, kept.sqrt(), torch.tensor(0.0)))


def normal_likelihood(raw: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The first output is the mean; the second the deviation itself, or its softplus."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        sigma = output[:, 1:] if raw else functional.softplus(output[:, 1:]) + 1e-2
        return (sigma.log() + (output[:, :1] - y).square() / (2 * sigma.square())).mean()

    return loss


def answered(inside: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The squared error of those targets that are known: masked before, or after the difference."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        known = y.isfinite()
        return functional.mse_loss(output[known], y[known]) if inside else (output - y).square()[known].mean()

    return loss
