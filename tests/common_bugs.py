"""Bugs as people bring them to forums, each in a small training of scikit-learn's digits or diabetes patients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

Network = Callable[[], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]

PIXELS = torch.tensor(load_digits().data, dtype=torch.float32)  # 0 to 16
DIGITS = (PIXELS - PIXELS.mean(0)) / (PIXELS.std(0) + 1e-6)
LABELS = torch.tensor(load_digits().target)
ONE_HOT = functional.one_hot(LABELS).float()
PATIENTS = torch.tensor(load_diabetes(scaled=False).data, dtype=torch.float32)
STANDARD = (PATIENTS - PATIENTS.mean(0)) / PATIENTS.std(0)
OUTCOMES = torch.tensor(load_diabetes().target, dtype=torch.float32)[:, None]
SCALED = (OUTCOMES - OUTCOMES.mean()) / OUTCOMES.std()


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU, last: nn.Module | None = None) -> nn.Sequential:
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), act())][:-1]
    return nn.Sequential(*layers, *([last] if last else []))


classifier = partial(mlp, 64, 128, 128, 10)
regressor = partial(mlp, 10, 64, 1)


def drawn(network: nn.Module, weight: Callable[[Tensor], object], bias: float = 0.0) -> nn.Module:
    for part in network.modules():
        if isinstance(part, nn.Linear):
            weight(part.weight)
            nn.init.constant_(part.bias, bias)
    return network


class Around(nn.Module):
    """A network with a function before it and one behind it."""

    def __init__(self, network: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


class PlainList(nn.Module):
    """Hidden layers that ``parameters()`` does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = [nn.Linear(64, 64) for _ in range(2)], nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x).relu()
        return self.head(x)


class ThroughNumPy(nn.Module):
    """A body whose output goes through NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tensor(self.body(x).relu().detach().numpy()))


class PixelByPixel(nn.Module):
    """A recurrent network over the 64 pixels."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(1, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[..., None])[0][:, -1])


@dataclass(frozen=True)
class Bug:
    """A training with one bug, or without one if it has no causes."""

    causes: tuple[str, ...]
    network: Network = classifier
    inputs: Tensor = DIGITS
    targets: Tensor = LABELS
    loss: Loss = functional.cross_entropy
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = partial(SGD, lr=0.1)
