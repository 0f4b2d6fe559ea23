"""Small data to learn from: scikit-learn's, and made ones."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from blind.programs_base import Split, split, standard
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def loader(*tensors: Tensor, batch: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=True, drop_last=True)


class Endless(IterableDataset[Any]):
    """Batches that a function makes, as a policy that plays makes its own."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.make()


def endless(make: Callable[[], Any]) -> DataLoader[Any]:
    return DataLoader(Endless(make), batch_size=None)


def digits(side: int = 8, channels: int = 1) -> Split:
    """Digits as images of ``side`` by ``side`` with values from -1 to 1."""
    x, y = datasets.load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    images = functional.interpolate(images, (side, side), mode="bilinear") if side != 8 else images
    return split(images.expand(-1, channels, -1, -1).contiguous(), torch.tensor(y))


def table(load: Callable[..., Any] = datasets.load_digits) -> Split:
    x, y = load(return_X_y=True)
    labels = torch.tensor(y)
    return split(standard(torch.tensor(x, dtype=torch.float32)), labels)


@cache
def prose() -> str:
    """Return the descriptions of scikit-learn's data sets: 20,000 characters of English."""
    loads = (
        datasets.load_iris,
        datasets.load_wine,
        datasets.load_diabetes,
        datasets.load_digits,
        datasets.load_breast_cancer,
        datasets.load_linnerud,
    )
    text = " ".join(load().DESCR for load in loads)
    return " ".join("".join(c if 32 <= ord(c) < 127 else " " for c in text).split())


CHARACTERS = 95  # printable ones of ASCII, from the blank on


def code() -> str:
    """Return Python code, for a model of prose to adapt to."""
    return " ".join(inspect.getsource(textwrap).split())


def characters(text: str, length: int = 32) -> tuple[Tensor, Tensor]:
    """Return windows of text as numbers from 0 to 94: the first nine tenths to learn from, and the rest."""
    ids = torch.tensor([ord(c) - 32 for c in text if 32 <= ord(c) < 127])
    cut = 9 * len(ids) // 10
    return ids[:cut].unfold(0, length, 4).contiguous(), ids[cut:].unfold(0, length, 16).contiguous()


def topics(length: int = 16, words: int = 60, classes: int = 4, count: int = 800) -> Split:
    """Return sequences of words, a third of which are of the topic; words start at 3, below are marks."""
    made = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (count,), generator=made)
    common = torch.randint(words, (count, length), generator=made)
    own = torch.randint(words // classes, (count, length), generator=made) + (y * (words // classes))[:, None]
    says = torch.rand(count, length, generator=made) < 0.4
    return split(torch.where(says, own, common) + 3, y)


def waves(count: int = 400, length: int = 48) -> Tensor:
    """Return noisy waves of several periods and heights, around 0."""
    made = torch.Generator().manual_seed(0)
    height, phase = 0.5 + torch.rand(count, 1, generator=made), 6.28 * torch.rand(count, 1, generator=made)
    period = 8 + 8 * torch.rand(count, 1, generator=made)
    at = torch.arange(length)[None]
    return height * torch.sin(6.28 * at / period + phase) + 0.05 * torch.randn(count, length, generator=made)


def moons(count: int = 1600) -> Split:
    x, y = datasets.make_moons(count, noise=0.06, random_state=0)
    return split(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


def blobs(side: int = 32, count: int = 160) -> Split:
    """Return noisy images with a bright disc, and the disc's mask, for segmentation."""
    made = torch.Generator().manual_seed(0)
    row = torch.arange(side).float()
    centre = (0.25 + 0.5 * torch.rand(count, 2, generator=made)) * side
    radius = (0.12 + 0.15 * torch.rand(count, generator=made)) * side
    far = (row[None, :, None] - centre[:, 0, None, None]).square() + (
        row[None, None] - centre[:, 1, None, None]
    ).square()
    mask = (far < radius[:, None, None].square()).float()[:, None]
    return split(mask + 0.3 * torch.randn(count, 1, side, side, generator=made), mask)


def hits(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy; 0 where the logits are not finite."""
    return (logits.argmax(-1) == labels).float().mean().item() if logits.isfinite().all() else 0.0


def explained(output: Tensor, targets: Tensor) -> float:
    """Return the share of the variance that is explained; -9 where the output is not finite."""
    if not output.isfinite().all():
        return -9.0
    return max(-9.0, 1 - ((output - targets).square().mean() / targets.var()).item())


def size(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())
