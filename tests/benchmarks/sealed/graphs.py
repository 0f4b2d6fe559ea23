"""Graphs, sets and points."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, hits, mlp, rng
from torch import Tensor, nn


def society(lonely: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give 240 nodes of three groups that mostly know their own kind, with weak features."""
    g = rng(1)
    y = torch.arange(240) % 3
    odds = torch.where(y[:, None] == y[None], 0.10, 0.01)
    link = (torch.rand(240, 240, generator=g) < odds).float().triu(1)
    link = link + link.T
    if lonely:
        link[7], link[:, 7] = 0, 0
    return torch.randn(240, 12, generator=g) + 0.7 * F.one_hot(y, 12), y, link


class GCN(LightningModule):
    """Full-batch node classification; the first half of the nodes is labelled."""

    def __init__(self, fault: str = "", depth: int = 2) -> None:
        super().__init__()
        self.fault = fault
        x, y, link = society(True)
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.register_buffer("link", link)
        sizes = [12] + [24] * (depth - 1) + [3]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def propagate(self, x: Tensor) -> Tensor:
        link = self.link if self.fault == "lonely" else self.link + torch.eye(240)
        if self.fault == "sum":
            return link @ x
        scale = link.sum(1) ** -0.5
        return scale[:, None] * (link @ (scale[:, None] * x))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.x
        for layer in self.layers[:-1]:
            x = torch.relu(layer(self.propagate(x)))
        return self.layers[-1](self.propagate(x))[ids]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (ids,) = batch
        return F.cross_entropy(self(ids), self.y[ids])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=5e-4)


def gcn(fault: str, depth: int = 2, bad_depth: int = 2) -> Callable[[bool, int], Setup]:
    def make(faulty: bool, seed: int) -> Setup:
        module = GCN(fault if faulty else "", bad_depth if faulty else depth)
        ids = torch.arange(240)
        return Setup(module, batches(ids[:120], seed=seed, size=120), hits(ids[120:], module.y[120:]), epochs=120)

    return make


class Links(LightningModule):
    """Predicts links by inner products of node embeddings."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.nodes = nn.Embedding(240, 8)
        nn.init.normal_(self.nodes.weight, std=0.3)

    def forward(self, pair: Tensor) -> Tensor:
        return (self.nodes(pair[:, 0]) * self.nodes(pair[:, 1])).sum(1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (pair,) = batch
        other = torch.stack([pair[:, 0], torch.randint(0, 240, (len(pair),))], 1)
        if self.faulty:
            other = pair.flip(1)  # meant as corrupted pairs, but the graph is undirected
        return F.softplus(-self(pair)).mean() + F.softplus(self(other)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def links(faulty: bool, seed: int) -> Setup:
    _, y, link = society(False)
    pair = link.nonzero()

    def score(module: LightningModule) -> float:
        with torch.no_grad():
            near = module.nodes.weight @ module.nodes.weight.T
        same = y[:, None] == y[None]
        return (near[same].mean() - near[~same].mean()).item() / (near.std().item() + 1e-9)

    return Setup(Links(faulty), batches(pair, seed=seed, size=64), score, epochs=4)


class Clouds(LightningModule):
    """Tells clouds of points apart by a learned projection's pairwise distances."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.eps = 0.0 if faulty else 1e-6
        self.point, self.head = nn.Linear(3, 8), mlp(16, 32, 3)

    def distances(self, z: Tensor) -> Tensor:
        gap = (z[:, :, None] - z[:, None]).pow(2).sum(-1)
        return torch.sqrt(gap + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        far = self.distances(self.point(x))
        return self.head(far.mean(1).sort(1).values)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give 16 points on a ball, a disc or a line."""
    g = rng(seed)
    y = torch.randint(0, 3, (count,), generator=g)
    flat = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0]])[y]
    x = F.normalize(torch.randn(count, 16, 3, generator=g) * flat[:, None], dim=-1)
    return x + 0.05 * torch.randn(count, 16, 3, generator=g), y


def clouds(faulty: bool, seed: int) -> Setup:
    return Setup(Clouds(faulty), batches(*shapes(1600, 1), seed=seed), hits(*shapes(400, 2)), epochs=4)


class DeepSet(LightningModule):
    """Sums over a set's members and trains by the sum of losses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = mlp(3, 32, 16), mlp(16, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).sum(1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], reduction="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def deep_set(_: bool, seed: int) -> Setup:
    return Setup(DeepSet(), batches(*shapes(1600, 1), seed=seed), hits(*shapes(400, 2)), epochs=4)


class Translation(LightningModule):
    """Embeds facts (head, relation, tail) as translations with a margin (TransE)."""

    def __init__(self) -> None:
        super().__init__()
        self.things, self.relations = nn.Embedding(60, 12), nn.Embedding(3, 12)

    def forward(self, fact: Tensor) -> Tensor:
        head, tail = self.things(fact[:, ::2]).unbind(1)
        return -(head + self.relations(fact[:, 1]) - tail).norm(dim=-1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (fact,) = batch
        wrong = torch.stack([fact[:, 0], fact[:, 1], torch.randint(0, 60, (len(fact),))], 1)
        return F.relu(1 - self(fact) + self(wrong)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), lr=0.3)


def translation(_: bool, seed: int) -> Setup:
    head, relation = torch.arange(60).repeat_interleave(3), torch.arange(3).repeat(60)
    fact = torch.stack([head, relation, head + torch.tensor([1, 5, 17])[relation]], 1)
    fact = fact[fact[:, 2] < 60]

    def score(module: Translation) -> float:
        with torch.no_grad():
            every = torch.stack(
                [module(torch.cat([fact[:, :2], torch.full((len(fact), 1), t)], 1)) for t in range(60)], 1
            )
        right = every.gather(1, fact[:, 2:])
        value = (1 / (every >= right).sum(1)).mean().item()
        return value if math.isfinite(value) else math.nan

    return Setup(Translation(), batches(fact.repeat(50, 1), seed=seed), score, epochs=1)


PROGRAMS = (
    Program("degree-of-lonely-node", "graphs", "Kipf and Welling 2017, without self-loops", gcn("lonely"),
            "A node without links has degree 0, and 0 to the power -1/2 is inf, times 0 is NaN.", "Adds self-loops.",
            "pow in GCN.propagate"),
    Program("oversmoothed", "graphs", "Li et al. 2018", gcn("deep", 2, 14),
            "Fourteen plain graph layers smooth all nodes to one and let gradients fade.", "Uses two."),
    Program("negatives-are-positives", "graphs", "", links,
            "Corrupted pairs are the true pairs turned round, so both losses cancel.", "Draws another node."),
    Program("root-of-own-distance", "graphs", "https://github.com/pytorch/pytorch/issues/2421", clouds,
            "The root of a point's distance to itself has no derivative.", "Adds an epsilon.",
            "sqrt in Clouds.distances"),
    Program("deep-set-sum", "graphs", "Zaheer et al. 2017", deep_set),
    Program("translations-margin", "graphs", "Bordes et al. 2013", translation),
)  # fmt: skip
