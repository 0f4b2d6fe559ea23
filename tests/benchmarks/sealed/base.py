"""Form of the sealed set's programs, and the data and scores that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Four = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Setup:
    """One run, built anew for each seed."""

    module: LightningModule
    loader: Any
    score: Callable[[LightningModule], float]
    epochs: int = 1
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A small training, with a fault and a repaired twin, or healthy."""

    name: str
    domain: str
    source: str
    make: Callable[[bool, int], Setup]
    fault: str = ""
    repair: str = ""
    place: str = ""


def batches(*tensors: Tensor, seed: int, size: int = 32, shuffle: bool = True) -> DataLoader:
    """Serve the tensors in seeded batches of one size; the last, smaller one is dropped."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=shuffle, generator=order, drop_last=True)


def rng(seed: int) -> torch.Generator:
    """Give a generator for data that doesn't touch torch's own."""
    return torch.Generator().manual_seed(seed)


def split(x: np.ndarray, y: np.ndarray, held: int, whole: bool) -> Four:
    """Shuffle once and hold the last rows out."""
    order = np.random.default_rng(0).permutation(len(x))
    a, b = torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order])
    b = b.long() if whole else b.float()
    return a[:-held], b[:-held], a[-held:], b[-held:]


@lru_cache
def digits() -> Four:
    """Give scikit-learn's digits as images of 1x8x8 in 0..1."""
    x, y = datasets.load_digits(return_X_y=True)
    return split(x.reshape(-1, 1, 8, 8) / 16.0, y, 400, True)


@lru_cache
def cancer() -> Four:
    """Give the standardized breast cancer table."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return split((x - x.mean(0)) / x.std(0), y, 150, True)


@lru_cache
def diabetes() -> Four:
    """Give the diabetes table with both sides standardized."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return split(x / x.std(0), (y - y.mean()) / y.std(), 120, False)


@lru_cache
def friedman() -> Four:
    """Give Friedman's first problem with a standardized target."""
    x, y = datasets.make_friedman1(2000, noise=0.3, random_state=0)
    return split(x, (y - y.mean()) / y.std(), 400, False)


@lru_cache
def moons(count: int = 1600) -> Four:
    """Give two moons."""
    x, y = datasets.make_moons(count, noise=0.15, random_state=0)
    return split(x, y, 400, True)


def outputs(module: LightningModule, x: Tensor) -> Tensor:
    """Run the module on held-out data."""
    module.eval()
    with torch.no_grad():
        return module(x)


def hits(x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Score by accuracy of the largest output."""

    def score(module: LightningModule) -> float:
        out = outputs(module, x)
        if not torch.isfinite(out).all():
            return float("nan")
        return (out.argmax(-1) == y).float().mean().item()

    return score


def signs(x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Score by balanced accuracy of the sign of one logit."""

    def score(module: LightningModule) -> float:
        out = outputs(module, x).flatten()
        if not torch.isfinite(out).all():
            return float("nan")
        right = ((out > 0).long() == y.flatten().long()).float()
        return (0.5 * (right[y.flatten() > 0.5].mean() + right[y.flatten() <= 0.5].mean())).item()

    return score


def explained(x: Tensor, y: Tensor) -> Callable[[LightningModule], float]:
    """Score by the share of variance that is explained."""

    def score(module: LightningModule) -> float:
        out = outputs(module, x).reshape(y.shape)
        return (1 - (out - y).pow(2).mean() / y.var()).item()

    return score


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Stack linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])
