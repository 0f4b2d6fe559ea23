"""Data for smoke tests, drawn anew for each seed: mostly noise, some that can be learned; and losses on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SAMPLES = 160
Samples = tuple[Any, Any]  # inputs and targets, each a tensor or a tuple of them


def noise(*shape: int, classes: int = 10, n: int = SAMPLES) -> Callable[[], Samples]:
    """Normal inputs and random classes."""
    return lambda: (torch.randn(n, *shape), torch.randint(classes, (n,)))


def bright(*shape: int) -> Callable[[], Samples]:
    """Pixels from 0 to 1, none dark on purpose."""
    return lambda: (torch.rand(SAMPLES, *shape), torch.randint(10, (SAMPLES,)))


def numbers(features: int, scale: float = 1.0, shift: float = 0.0) -> Callable[[], Samples]:
    return lambda: (torch.randn(SAMPLES, features), shift + scale * torch.randn(SAMPLES, 1))


def labels(features: int, count: int = 1, share: float = 0.5) -> Callable[[], Samples]:
    """Yes and no for each of ``count`` questions."""
    return lambda: (torch.randn(SAMPLES, features), (torch.rand(SAMPLES, count) < share).float())


def words(vocabulary: int, length: int = 16, classes: int | None = None) -> Callable[[], Samples]:
    """Random tokens, and for each the next one, or for all a class."""
    shape = (SAMPLES, length) if classes is None else (SAMPLES,)
    return lambda: (torch.randint(vocabulary, (SAMPLES, length)), torch.randint(classes or vocabulary, shape))


def learned(inputs: Callable[[], Tensor], answer: Callable[[Tensor], Tensor]) -> Callable[[], Samples]:
    """Targets that are a function of the inputs."""

    def draw() -> Samples:
        x = inputs()
        return x, answer(x)

    return draw


def rebuilt(features: int, draw: Callable[..., Tensor] = torch.rand) -> Callable[[], Samples]:
    return learned(lambda: draw(SAMPLES, features), lambda x: x)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


def digits(*shape: int) -> Callable[[], Samples]:
    """Some of scikit-learn's digits, from 0 to 1."""

    def draw() -> Samples:
        x, y = _digits()
        drawn = torch.randperm(len(x))[:SAMPLES]
        return x[drawn].reshape(-1, *shape), y[drawn]

    return draw


def digit_images() -> Samples:
    """Digits to rebuild."""
    x, _ = digits(64)()
    return x, x


def pairs(alike: float | None = None) -> Samples:
    """Pairs of vectors with random labels; with ``alike``, the second is the first plus that much noise."""
    a, b = torch.randn(2, SAMPLES, 20)
    return (a, b if alike is None else a + alike * b), torch.randint(2, (SAMPLES,)).float()


def table() -> Samples:
    categories = torch.stack([torch.randint(count, (SAMPLES,)) for count in (5, 20, 100)], 1)
    return (torch.randn(SAMPLES, 6) * 3 + 1, categories), torch.randint(2, (SAMPLES, 1)).float()


def graphs() -> Samples:
    """Twelve nodes, each joined to itself and to a third of the others."""
    adjacency = ((torch.rand(SAMPLES, 12, 12) < 1 / 3) | torch.eye(12).bool()).float()
    return (torch.randn(SAMPLES, 12, 8), adjacency), torch.randint(3, (SAMPLES,))


def sentences() -> Samples:
    source, target = torch.randint(40, (SAMPLES, 12)), torch.randint(40, (SAMPLES, 11))
    return (source, target[:, :-1]), target[:, 1:]


def letters() -> Samples:
    """Frames, and their four letters; letter 0 is none."""
    return torch.randn(SAMPLES, 20, 12), torch.randint(1, 10, (SAMPLES, 4))


def lessons() -> Samples:
    """A teacher's logits."""
    return torch.randn(SAMPLES, 20), 3 * torch.randn(SAMPLES, 10)


def next_word(output: Tensor, words: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), words.flatten())


def quantiles(output: Tensor, y: Tensor) -> Tensor:
    """The pinball loss of the 10th, 50th and 90th percentile."""
    over = y - output
    return torch.maximum(over * torch.tensor([0.1, 0.5, 0.9]), over * torch.tensor([-0.9, -0.5, -0.1])).mean()


def distilled(output: Tensor, teacher: Tensor, heat: float = 2.0) -> Tensor:
    """Hinton et al. 2015: the teacher's softened answers."""
    student, wanted = (output / heat).log_softmax(1), (teacher / heat).softmax(1)
    return heat**2 * functional.kl_div(student, wanted, reduction="batchmean")


def masks() -> Samples:
    """Images with a target for each pixel."""
    return torch.randn(64, 1, 16, 16), (torch.rand(64, 1, 16, 16) > 0.5).float()


def real_or_not() -> Samples:
    """Images, and whether they are real."""
    return torch.randn(SAMPLES, 3, 16, 16), torch.randint(2, (SAMPLES, 1)).float()


def both() -> Samples:
    """A class and a number for each sample."""
    return torch.randn(SAMPLES, 20), (torch.randint(5, (SAMPLES,)), torch.randn(SAMPLES, 1))
