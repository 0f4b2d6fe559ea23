"""Small data: scikit-learn's, the text of its descriptions, and invented tasks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from program import Batch, Data
from sklearn import datasets
from torch import Tensor

TEXT_CLASSES = 40


def _split(x: Tensor, y: Tensor, test: float = 0.25) -> Data:
    """Shuffled once, the last part for the test."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = int(len(x) * (1 - test))
    return Data((x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]]))


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def _loaded(load: Any) -> tuple[Tensor, Tensor]:
    x, y = load(return_X_y=True)
    return torch.tensor(np.asarray(x), dtype=torch.float32), torch.tensor(np.asarray(y))


@cache
def digits(shape: tuple[int, ...] = (64,), scale: float = 1.0, shift: float = 0.0) -> Data:
    """Images of 8 x 8, mean 0 and deviation 1, then ``scale`` and ``shift``."""
    x, y = _loaded(datasets.load_digits)
    x = (x - x.mean()) / x.std() * scale + shift
    return _split(x.reshape(len(x), *shape), y.long())


@cache
def odd_digits(scale: float = 1.0, shift: float = 0.0) -> Data:
    """A column of 1 for odd digits and 0 for even ones."""
    data = digits((64,), scale, shift)
    return Data(*((x, (y % 2).float()[:, None]) for x, y in (data.train, data.test)))


@cache
def noisy_digits(share: float, shape: tuple[int, ...] = (64,)) -> Data:
    """Digits with a share of the training labels drawn at random."""
    data = digits(shape)
    generator = torch.Generator().manual_seed(1)
    x, y = data.train
    wrong = torch.rand(len(y), generator=generator) < share
    return Data((x, torch.where(wrong, torch.randint(10, y.shape, generator=generator), y)), data.test)


@cache
def rare_digits(kept: float) -> Data:
    """Digits with a small share of five classes; the test is balanced."""
    data = digits()
    x, y = data.train
    keep = (y < 5) | (torch.rand(len(y), generator=torch.Generator().manual_seed(2)) < kept)
    return Data((x[keep], y[keep]), data.test)


@cache
def table(name: str, raw: bool = False, factor: float = 1.0) -> Data:
    """A table with classes: wine or breast_cancer; ``raw`` keeps the measured scales."""
    x, y = _loaded(getattr(datasets, f"load_{name}"))
    return _split((x if raw else _standard(x)) * factor, y.long())


@cache
def regression(
    name: str = "friedman", raw: bool = False, scale: float = 1.0, shift: float = 0.0, noise: float = 0.1
) -> Data:
    """Numbers to predict, mean 0 and deviation 1, then ``scale`` and ``shift``; ``raw`` leaves the inputs alone."""
    if name == "diabetes":
        x, y = _loaded(lambda return_X_y: datasets.load_diabetes(return_X_y=return_X_y, scaled=False))
    else:
        made = datasets.make_friedman1(n_samples=1000, n_features=10, noise=noise, random_state=0)
        x, y = (torch.tensor(part, dtype=torch.float32) for part in made)
    y = _standard(y.float()[:, None]) * scale + shift
    return _split(x if raw else _standard(x), y)


@cache
def waves(points: int = 800) -> Data:
    """A damped oscillation over time, as a physicist would fit it."""
    t = torch.linspace(-1, 1, points)[:, None]
    return _split(t, torch.exp(-t) * torch.sin(4 * t) / 2)


@cache
def blobs(classes: int = 4, features: int = 12) -> Data:
    x, y = datasets.make_blobs(1000, features, centers=classes, cluster_std=4.0, random_state=3)
    return _split(_standard(torch.tensor(x, dtype=torch.float32)), torch.tensor(y).long())


@cache
def recall(length: int, classes: int = 4) -> Data:
    """Sequences whose first element says the class, noise from there on."""
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(classes, (1200,), generator=generator)
    x = 0.3 * torch.randn(1200, length, classes, generator=generator)
    x[:, 0] += 2 * torch.nn.functional.one_hot(y, classes)
    return _split(x, y)


@cache
def sums(length: int, factor: float = 1.0) -> Data:
    """Sequences with their mean as the target."""
    x = torch.randn(1000, length, 2, generator=torch.Generator().manual_seed(5))
    return _split(x, factor * _standard(x[..., :1].mean(1)))


@cache
def text(length: int = 16) -> Data:
    """Characters of scikit-learn's descriptions of its data; the target is the next character."""
    words = "".join(
        str(load().DESCR) for load in (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer)
    ).lower()
    known = {char: i for i, char in enumerate(sorted(set(words), key=lambda c: -words.count(c))[: TEXT_CLASSES - 1])}
    codes = torch.tensor([known.get(char, TEXT_CLASSES - 1) for char in words])
    x, y = (part.unfold(0, length, 5) for part in (codes[:-1], codes[1:]))
    return _split(x.contiguous(), y.contiguous())


@cache
def ratings(people: int = 60, things: int = 50) -> Data:
    """Ratings: a matrix of rank 3, with some entries to learn from."""
    generator = torch.Generator().manual_seed(6)
    tastes, traits = torch.randn(people, 3, generator=generator), torch.randn(things, 3, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(people), torch.arange(things))
    return _split(pairs, _standard((tastes @ traits.T).flatten()[:, None]))


@cache
def images(data: str = "digits") -> Data:
    """Images to rebuild: the target is the input."""
    return Data(*((x, x) for x, _ in (digits().train, digits().test)))


def rows(batch: Batch) -> Tensor:
    """Digits as sequences of eight rows."""
    return batch[0].reshape(-1, 8, 8)
