"""Broadcast shapes are read from the loss's graph; what compares all with all on purpose is none."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwatch.probe.loss_graph import read_end
from gradwatch.torch_internals import output_shape

needs_shapes = pytest.mark.skipif(
    output_shape(nn.Linear(1, 1)(torch.ones(1, 1)).grad_fn, 0) is None, reason="this torch tells no shapes in its graph"
)

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")
N = 8
torch.manual_seed(0)
X, FLAT = torch.randn(N, 3), torch.randn(N)
COLUMN = FLAT[:, None]
NET = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
EMBED, IMAGES = nn.Linear(3, 4), nn.Conv2d(1, 1, 3, padding=1)
VECTORS = torch.randn(N, 4)


def out() -> Tensor:
    return NET(X)


def emb() -> Tensor:
    return EMBED(X)


BROADCAST: dict[str, Callable[[], Tensor]] = {
    "mse_loss": lambda: functional.mse_loss(out(), FLAT),
    "squares": lambda: ((out() - FLAT) ** 2).mean(),
    "target first": lambda: ((FLAT - out()) ** 2).mean(),
    "l1_loss": lambda: functional.l1_loss(out(), FLAT),
    "huber_loss": lambda: functional.huber_loss(out(), FLAT),
    "smooth_l1_loss": lambda: functional.smooth_l1_loss(out(), FLAT),
    "absolute": lambda: (out() - FLAT).abs().mean(),
    "root": lambda: ((out() - FLAT) ** 2).mean().sqrt(),
    "flat output": lambda: ((out().squeeze(1) - COLUMN) ** 2).mean(),
    "flat output, mse_loss": lambda: functional.mse_loss(out().squeeze(-1), COLUMN),
    "sum over samples": lambda: ((out() - FLAT) ** 2).sum() / N,
    "product": lambda: ((out() - FLAT) * (out() - FLAT)).mean(),
    "policy gradient": lambda: -(out().squeeze(1) * COLUMN).mean(),
    "images without a channel": lambda: functional.mse_loss(IMAGES(torch.randn(6, 1, 5, 5)), torch.randn(6, 5, 5)),
    "temporal difference": lambda: functional.smooth_l1_loss(out(), FLAT + 0.9 * COLUMN),
    "with a penalty": lambda: ((out() - FLAT) ** 2).mean() + 0.1 * NET[0].weight.square().sum(),
    "accumulated": lambda: functional.mse_loss(out(), FLAT) / 4,
    "log cosh": lambda: torch.log(torch.cosh(out() - FLAT)).mean(),
    "weights of samples": lambda: (COLUMN.abs() * (out() - FLAT) ** 2).mean(),
    "half": lambda: 0.5 * torch.mean(torch.square(FLAT - out())),
    "not reduced": lambda: functional.mse_loss(out(), FLAT, reduction="none").mean(1).mean(),
    "Poisson": lambda: functional.poisson_nll_loss(out(), FLAT.abs()),
    "Gaussian with a variance": lambda: (((FLAT - out()) ** 2) / (2 * torch.exp(out()))).mean(),
}
ON_PURPOSE: dict[str, Callable[[], Tensor]] = {
    "same shapes": lambda: functional.mse_loss(out(), COLUMN),
    "cross-entropy": lambda: functional.cross_entropy(emb(), torch.zeros(N).long()),
    "distances": lambda: (emb().unsqueeze(1) - emb().unsqueeze(0)).pow(2).sum(-1).mean(),
    "pairs": lambda: ((out() - out().T) - (COLUMN - COLUMN.T)).pow(2).mean(),
    "ranking": lambda: functional.relu(1 - (out() - out().T)).mean(),
    "prototypes": lambda: ((emb()[:, None] - VECTORS[None]) ** 2).sum(-1).min(1)[0].mean(),
    "attention": lambda: functional.mse_loss(torch.softmax(emb() @ emb().T, 1) @ emb(), VECTORS),
    "contrastive": lambda: functional.cross_entropy(emb() @ emb().T, torch.arange(N)),
    "quantiles of both": lambda: functional.smooth_l1_loss(
        emb().unsqueeze(2).expand(N, 4, 4), VECTORS.unsqueeze(1).expand(N, 4, 4)
    ),
    "returns to go": lambda: -(out().squeeze(1) * torch.ones(N, N).tril()).sum(),
    "survival": lambda: -(
        out().squeeze(1) - torch.logsumexp(out().squeeze(1)[None] + torch.zeros(N, N), 1)
    ).mean(),
    "kernel": lambda: torch.exp(-((out() - out().T) ** 2)).mean(),
    "soft histogram": lambda: torch.exp(-((out() - torch.linspace(0, 1, N)) ** 2)).sum(0).sub(1).pow(2).mean(),
    "weights of pairs": lambda: (torch.rand(N, N) * (out() - FLAT) ** 2).mean(),
    "mean of the targets": lambda: (out() - FLAT.mean()).pow(2).mean(),
    "quantiles": lambda: torch.max(0.9 * (COLUMN - emb()), -0.1 * (COLUMN - emb())).mean(),
    "ensemble": lambda: (emb() - COLUMN).abs().mean(),
    "one target for all": lambda: ((emb() - torch.randn(4)) ** 2).mean(),
    "one sample": lambda: ((NET(X[:1]) - FLAT[:1]) ** 2).mean(),
    "Gram matrix": lambda: (emb() @ emb().T - torch.eye(N)).pow(2).mean(),
}  # fmt: skip


@needs_shapes
@pytest.mark.parametrize("name", BROADCAST)
def test_shapes_that_were_broadcast_are_told(name: str) -> None:
    loss = BROADCAST[name]()
    assert "to (N, " in read_end(loss).broadcast


@needs_shapes
@pytest.mark.parametrize("name", ["mse_loss", "squares", "absolute", "sum over samples", "accumulated", "half"])
def test_they_are_still_seen_after_the_backward_pass(name: str) -> None:
    loss = BROADCAST[name]()
    loss.backward()
    assert read_end(loss).broadcast.endswith(" to (N, N)")


@pytest.mark.parametrize("name", ON_PURPOSE)
def test_what_is_compared_on_purpose_is_not(name: str) -> None:
    loss = ON_PURPOSE[name]()
    assert read_end(loss).broadcast == ""
    loss.backward()
    assert read_end(loss).broadcast == ""


@needs_shapes
def test_the_classes_are_those_of_a_mean_cross_entropy_and_nothing_else() -> None:
    labels = torch.zeros(N).long()
    assert read_end(functional.cross_entropy(emb(), labels)).classes == 4
    with_penalty = functional.cross_entropy(emb(), labels) + EMBED.weight.abs().sum()
    of_sum = functional.cross_entropy(emb(), labels, reduction="sum")
    for other in (with_penalty, of_sum, functional.mse_loss(out(), COLUMN)):
        assert math.isnan(read_end(other).classes)
