"""Small networks with several inputs, outputs or parts, and the losses that go with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from small_networks import mlp
from torch import Tensor, nn
from torch.nn import functional


class Vae(nn.Module):
    """A variational autoencoder of 64 pixels (Kingma and Welling 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, 48, 16), mlp(8, 48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        return self.decode(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


def vae_loss(output: Sequence[Tensor], x: Tensor) -> Tensor:
    pixels, mean, log_variance = output
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
    return functional.binary_cross_entropy_with_logits(pixels, x, reduction="sum") / len(x) + divergence


class Siamese(nn.Module):
    """One network for both of a pair."""

    def __init__(self, unit: bool) -> None:
        super().__init__()
        self.body, self.unit = mlp(20, 64, 16), unit

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.body(a), self.body(b)
        return (functional.normalize(codes[0]), functional.normalize(codes[1])) if self.unit else codes


def contrastive(codes: Sequence[Tensor], same: Tensor) -> Tensor:
    """Pairs that are the same come close, others move a margin apart (Hadsell et al. 2006)."""
    distance = functional.pairwise_distance(*codes)
    return (same * distance.square() + (1 - same) * (1 - distance).relu().square()).mean()


def info_nce(codes: Sequence[Tensor], _: Tensor) -> Tensor:
    """Each code has to find its pair among the batch (van den Oord et al. 2018)."""
    return functional.cross_entropy(codes[0] @ codes[1].T / 0.1, torch.arange(len(codes[0])))


class Tabular(nn.Module):
    """Embeddings of three categories beside six numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(count, 8) for count in (5, 20, 100))
        self.norm, self.body = nn.BatchNorm1d(6), mlp(30, 64, 32, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [embed(categories[:, i]) for i, embed in enumerate(self.embeds)]
        return self.body(torch.cat([self.norm(numbers), *embedded], 1))


class Pinn(nn.Module):
    """A physics-informed network (Raissi et al. 2019): gives a function and its derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(1, 32, 32, 32, 1, act=nn.Tanh)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        u = self.body(x)
        return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def decay(output: Sequence[Tensor], u: Tensor) -> Tensor:
    """The equation u' = -u, and what was measured of u."""
    return (output[1] + output[0]).square().mean() + functional.mse_loss(output[0], u)


class BothWays(nn.Module):
    """A classifier of text by a bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(200, 32), nn.LSTM(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x))[0].mean(1))


class Graph(nn.Module):
    """Two rounds in which each node takes the mean of its neighbours; a class for the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        mean = adjacency / adjacency.sum(2, keepdim=True)
        nodes = (mean @ self.first(nodes)).relu()
        return self.head((mean @ self.second(nodes)).relu().mean(1))


class TwoHeads(nn.Module):
    """A class and a number from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.number = mlp(20, 64, 64, last=nn.ReLU), nn.Linear(64, 5), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.kind(hidden), self.number(hidden)


def two_tasks(output: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    return functional.cross_entropy(output[0], targets[0]) + functional.mse_loss(output[1], targets[1])


class Speech(nn.Module):
    """An LSTM over 20 frames that says a letter, or none, at each."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(12, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0]).log_softmax(-1).transpose(0, 1)


def ctc(letters: Tensor, said: Tensor) -> Tensor:
    frames, heard = torch.full((len(said),), len(letters)), torch.full((len(said),), said.shape[1])
    return functional.ctc_loss(letters, said, frames, heard)
