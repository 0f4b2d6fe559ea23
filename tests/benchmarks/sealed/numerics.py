"""Arithmetic: overflow, domains, precision, casts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, cancer, digits, explained, hits, mlp, moons, outputs, rng
from torch import Tensor, nn


class OwnSoftmax(LightningModule):
    """Writes softmax out, with a temperature that sharpens."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = mlp(64, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1)) / 0.002

    def probabilities(self, scores: Tensor) -> Tensor:
        if not self.faulty:
            scores = scores - scores.amax(1, keepdim=True)
        powers = torch.exp(scores)
        return powers / powers.sum(1, keepdim=True)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        p = self.probabilities(self(batch[0]))
        return -torch.log(p.gather(1, batch[1][:, None]) + 1e-20).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def softmax_overflow(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(OwnSoftmax(faulty), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Heading(LightningModule):
    """Learns directions by the angle to the true one."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.edge = 1.0 if faulty else 1.0 - 1e-5
        self.net = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=-1)

    def angle(self, out: Tensor, goal: Tensor) -> Tensor:
        return torch.acos((out * goal).sum(-1).clamp(-self.edge, self.edge))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.angle(self(batch[0]), batch[1]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def arccosine(faulty: bool, seed: int) -> Setup:
    g = rng(1)
    x = torch.randn(3200, 3, generator=g)
    y = F.normalize(x @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), dim=-1)

    def score(module: LightningModule) -> float:
        return (outputs(module, x[2800:]) * y[2800:]).sum(-1).mean().item()

    return Setup(Heading(faulty), batches(x[:2800], y[:2800], seed=seed), score, epochs=4)


class Sparse(LightningModule):
    """Gates features by a top-k distribution and asks for a low entropy of it."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.gate = nn.Linear(30, 30)
        self.net = mlp(30, 32, 2)

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        floor = scores.topk(10, dim=-1).values[:, -1:]
        return scores.masked_fill(scores < floor, -1e9).softmax(-1)

    def entropy(self, p: Tensor) -> Tensor:
        return -(p * torch.log(p)).sum(-1) if self.faulty else torch.special.entr(p + 1e-9).sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.weights(x) * 10)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.01 * self.entropy(self.weights(x)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def sparse_entropy(faulty: bool, seed: int) -> Setup:
    x, y, a, b = cancer()
    return Setup(Sparse(faulty), batches(x, y, seed=seed, size=16), hits(a, b), epochs=6)


class SafeWhere(LightningModule):
    """Averages the known readings of a station with a learned gain; some have none."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.gain = nn.Linear(6, 6)
        self.out = mlp(2, 24, 1)

    def pooled(self, x: Tensor, known: Tensor) -> Tensor:
        count = known.sum(1)
        total = (F.softplus(self.gain(x)) * known).sum(1)
        if self.faulty:
            return torch.where(count > 0, torch.sqrt(total / count), torch.zeros_like(total))
        return torch.where(count > 0, torch.sqrt(total / count.clamp(min=1) + 1e-6), torch.zeros_like(total))

    def forward(self, both: Tensor) -> Tensor:
        x, known = both[:, :6], both[:, 6:]
        return self.out(torch.stack([self.pooled(x, known), known.mean(1)], 1)).squeeze(-1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def where_trap(faulty: bool, seed: int) -> Setup:
    g = rng(1)
    x = torch.randn(2400, 6, generator=g)
    known = (torch.rand(2400, 6, generator=g) < 0.5).float()
    known[9] = 0
    y = (x * known).sum(1) / known.sum(1).clamp(min=1) + known.mean(1)
    both = torch.cat([x * known, known], 1)
    return Setup(
        SafeWhere(faulty), batches(both[:2000], y[:2000], seed=seed), explained(both[2000:], y[2000:]), epochs=4
    )


class LowPrecision(LightningModule):
    """Keeps its weights in a narrow type."""

    def __init__(self, kind: torch.dtype, lr: float, adam: bool) -> None:
        super().__init__()
        self.kind, self.lr, self.adam = kind, lr, adam
        self.net = mlp(64, 64, 64, 10).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1).to(self.kind)).float()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def half_adam(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    module = LowPrecision(torch.float16 if faulty else torch.float32, 1e-3, True)
    return Setup(module, batches(x, y, seed=seed), hits(a, b), epochs=4)


def bfloat_rounding(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    module = LowPrecision(torch.bfloat16 if faulty else torch.float32, 4e-5, True)
    x, a = x * 8 - 2.4, a * 8 - 2.4
    return Setup(module, batches(x, y, seed=seed, size=16), hits(a, b), epochs=5)


class Contrast(LightningModule):
    """InfoNCE of two noisy views, written out, at a very low temperature."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = mlp(64, 64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x.flatten(1)), dim=-1)

    def ratio(self, one: Tensor, two: Tensor) -> Tensor:
        sims = one @ two.T / (0.01 if self.faulty else 0.1)
        powers = torch.exp(sims)
        return -torch.log(powers.diagonal() / powers.sum(1)).mean()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        return self.ratio(*(self(x + 0.2 * torch.randn_like(x)) for _ in range(2)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def neighbours(x: Tensor, y: Tensor, a: Tensor, b: Tensor):
    def score(module: LightningModule) -> float:
        known, new = outputs(module, x), outputs(module, a)
        if not new.isfinite().all():
            return math.nan
        return (y[(new @ known.T).argmax(1)] == b).float().mean().item()

    return score


def infonce(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    centre = x.mean(0)
    x, a = x - centre, a - centre
    return Setup(Contrast(faulty), batches(x, seed=seed, size=64), neighbours(x, y, a, b), epochs=8)


class Poincare(LightningModule):
    """Embeds a tree's nodes in the ball of Poincare."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.nodes = nn.Embedding(63, 2)
        nn.init.uniform_(self.nodes.weight, -0.05, 0.05)

    def forward(self, ids: Tensor) -> Tensor:
        return self.nodes(ids)

    def distance(self, u: Tensor, v: Tensor) -> Tensor:
        if not self.faulty:
            u, v = (w * (0.98 / w.norm(dim=-1, keepdim=True).clamp(min=0.98)) for w in (u, v))
        gap = (u - v).pow(2).sum(-1)
        inner = 1 + 2 * gap / ((1 - u.pow(2).sum(-1)) * (1 - v.pow(2).sum(-1)))
        return torch.acosh(inner + 1e-5)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        u, v, w = (self(ids) for ids in batch)
        return F.relu(0.5 + self.distance(u, v) - self.distance(u, w)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def hyperbolic(faulty: bool, seed: int) -> Setup:
    child = torch.arange(1, 63).repeat(60)
    parent = (child - 1) // 2
    other = torch.randint(0, 63, child.shape, generator=rng(2))

    def score(module: LightningModule) -> float:
        w = module.nodes.weight.detach()
        d = torch.stack([module.distance(w[i], w) for i in range(63)]).fill_diagonal_(1e9)
        ids = torch.arange(1, 63)
        near = (d[ids] < d[ids, (ids - 1) // 2][:, None]).float().mean()
        return 1 - near.item() if d.isfinite().all() else math.nan

    return Setup(Poincare(faulty), batches(child, parent, other, seed=seed), score, epochs=2)


class Mixed(LightningModule):
    """Trains under autocast of the trainer, in double widths."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]).float(), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def autocast(_: bool, seed: int) -> Setup:
    x, y, a, b = moons()
    return Setup(Mixed(), batches(x, y, seed=seed), hits(a, b), epochs=4, trainer={"precision": "bf16-mixed"})


PROGRAMS = (
    Program("softmax-written-out", "numerics", "practice", softmax_overflow,
            "exp of sharpened scores overflows and inf/inf is NaN.", "Subtracts the row's largest score.",
            "exp in OwnSoftmax.probabilities"),
    Program("angle-at-one", "numerics", "practice of rotation losses", arccosine,
            "acos has an infinite derivative where the cosine reaches 1.", "Clamps a little inside.",
            "acos in Heading.angle"),
    Program("entropy-of-hard-gate", "numerics", "practice", sparse_entropy,
            "The entropy takes 0 * log 0 of the gates that top-k shut.", "Uses entr with a small offset.",
            "log in Sparse.entropy"),
    Program("where-hides-division", "numerics", "https://github.com/pytorch/pytorch/issues/16317", where_trap,
            "where() hides 0/0 in the forward pass, but its gradient is still NaN.", "Clamps before the division.",
            "div in SafeWhere.pooled"),
    Program("half-weights-adam", "numerics", "https://discuss.pytorch.org, Adam's eps in half precision", half_adam,
            "Adam's eps of 1e-8 is zero in float16, so steps divide by zero.", "Keeps float32 weights."),
    Program("bfloat-weights-round-away", "numerics", "Zamirai et al. 2020", bfloat_rounding,
            "Steps of 4e-5 are rounded away by bfloat16 weights.", "Keeps float32 weights."),
    Program("infonce-low-temperature", "numerics", "", infonce,
            "exp of similarities over a temperature of 0.01 overflows.", "Uses a temperature of 0.1.",
            "exp in Contrast.ratio"),
    Program("hyperbolic-outside-ball", "numerics", "Nickel and Kiela 2017", hyperbolic,
            "Nothing keeps the points inside the unit ball, and acosh below 1 is NaN.", "Projects into the ball.",
            "acosh in Poincare.distance"),
    Program("bf16-autocast", "numerics", "", autocast),
)  # fmt: skip
