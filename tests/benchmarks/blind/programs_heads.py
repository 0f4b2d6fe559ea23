"""Pairs, labels and heads for the bugs in losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from blind.programs_base import Split, digits, mlp, r_squared, rows
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn


class Twins(nn.Module):
    """The distance between the codes of two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.code = mlp(64, 64, 16)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.code(pairs[:, 0]) - self.code(pairs[:, 1])).square().mean(1)


def pairs() -> Split:
    """Pairs of digits, and whether both are the same digit, as about half of them are."""
    whole, draw = digits()(), torch.Generator().manual_seed(0)

    def paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        other = torch.randperm(len(x), generator=draw)
        order = y.argsort()
        other[: len(x) // 2] = order.roll(1)[order.argsort()][: len(x) // 2]
        return torch.stack([x, x[other]], 1), (y == y[other]).float()

    return Split(*paired(whole.inputs, whole.targets), *paired(whole.test_inputs, whole.test_targets))


def contrastive(margin: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(distance: Tensor, same: Tensor) -> Tensor:
        far = (1 - distance).relu() if margin else -distance
        return (same * distance + (1 - same) * far).mean()

    return loss


def near(distance: Tensor, same: Tensor) -> float:
    return ((distance < 0.5) == same.bool()).float().mean().item() if distance.isfinite().all() else 0.0


def yes_and_no(safe: bool) -> Split:
    """Labels of 0 and 1; the ones to learn from may be -1 and 1."""
    whole = rows(load_breast_cancer, long=False)()
    return whole if safe else Split(whole.inputs, 2 * whole.targets - 1, whole.test_inputs, whole.test_targets)


def with_head(last: nn.Module) -> nn.Module:
    return nn.Sequential(mlp(64, 64, 10), last)


class Divided(nn.Module):
    """Logits divided by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.layers, self.temperature = mlp(64, 64, 10), temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) / self.temperature


def likely(output: Tensor, y: Tensor) -> float:
    """The accuracy of probabilities."""
    return ((output > 0.5) == y.bool()).float().mean().item() if output.isfinite().all() else 0.0


def first_only(output: Tensor, y: Tensor) -> float:
    return r_squared(output[:, :1], y)


class Rounded(nn.Module):
    """A network in another precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.dtype = mlp(64, 64, 10).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(self.dtype)).float()
