"""The form of a blind program, and the data to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from gradwatch.records import Cause

Rule = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Split:
    """Data to learn from, and data held out."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def split(inputs: Tensor, targets: Tensor) -> Split:
    """Three quarters to learn from, the same ones each time."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    learned, held = order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]
    return Split(inputs[learned], targets[learned], inputs[held], targets[held])


def accuracy(output: Tensor, labels: Tensor) -> float:
    """The share of right answers; none where the output is NaN."""
    if not output.isfinite().all():
        return 0.0
    guess = output.argmax(-1) if output.dim() > labels.dim() else (output > 0).long()
    return (guess == (labels > 0 if output.dim() == labels.dim() else labels)).float().mean().item()


def r_squared(output: Tensor, targets: Tensor) -> float:
    """The share of the variance that is explained, at least -1."""
    if not output.isfinite().all():
        return -1.0
    return max(-1.0, 1 - ((output - targets).square().mean() / (targets - targets.mean()).square().mean()).item())


@dataclass(frozen=True)
class Training:
    """A network, its data, and its score on held-out data (more is better)."""

    network: Callable[[], nn.Module]
    data: Callable[[], Split]
    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy
    optimizer: Rule = lambda params: SGD(params, lr=0.1)
    score: Callable[[Tensor, Tensor], float] = accuracy
    steps: int = 100
    batch: int = 32


@dataclass(frozen=True)
class Program:
    """A training with one thing wrong, or with nothing.

    Attributes:
        source: where such a program comes from.
        training: the program.
        causes: the names that an expert would accept; none for a healthy program.
        repair: what the repaired twin has in place of the bug.
    """

    source: str
    training: Training
    causes: tuple[Cause, ...] = ()
    repair: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fixed(self) -> Training:
        """The repaired twin."""
        return replace(self.training, **self.repair)


def bug(source: str, *causes: Cause, repair: Mapping[str, Any], **training: Any) -> Program:
    return Program(source, Training(**training), causes, repair)


def healthy(source: str, **training: Any) -> Program:
    return Program(source, Training(**training))


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def digits(*shape: int, change: Callable[[Tensor], Tensor] = standard) -> Callable[[], Split]:
    """Digits of 8 by 8 pixels, from 0 to 16 before the change."""

    def made() -> Split:
        x, y = load_digits(return_X_y=True)
        return split(change(torch.tensor(x, dtype=torch.float32)).reshape(-1, *(shape or (64,))), torch.tensor(y))

    return made


def rebuilt(top: float = 1.0) -> Split:
    """Digits to rebuild, from 0 to 1; the targets up to ``top``."""
    whole = digits(change=lambda x: x / 16)()
    return Split(whole.inputs, top * whole.inputs, whole.test_inputs, top * whole.test_inputs)


def rows(
    load: Callable[..., Any], change: Callable[[Tensor], Tensor] = standard, long: bool = True
) -> Callable[[], Split]:
    """One of scikit-learn's tables with classes."""

    def made() -> Split:
        x, y = load(return_X_y=True)
        labels = torch.tensor(y)
        return split(change(torch.tensor(x, dtype=torch.float32)), labels if long else labels[:, None].float())

    return made


def patients(change: Callable[[Tensor], Tensor] = lambda y: y) -> Split:
    """Diabetes patients, standardized, and their outcomes, standardized and then changed."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    outcomes = standard(torch.tensor(y, dtype=torch.float32)[:, None])
    return split(standard(torch.tensor(x, dtype=torch.float32)), change(outcomes))


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(*[part for a, b in pairwise(widths) for part in (nn.Linear(a, b), act())][:-1])


def cnn(channels: int = 16, norm: bool = False) -> nn.Sequential:
    """Two convolutions and a head, for digits."""
    layers: list[nn.Module] = []
    for width in (1, channels):
        layers += [nn.Conv2d(width, channels, 3, padding=1), *([nn.BatchNorm2d(channels)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * channels, 10))
