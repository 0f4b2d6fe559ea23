"""Fine-tuning, adapters, distillation, metric learning, experts, and the start of deep nets."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, cancer, digits, hits, mlp, moons, outputs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def pretrained() -> nn.Sequential:
    """Train a small encoder on the digits 0 to 4, with its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        x, y, _, _ = digits()
        x, y = x.flatten(1)[y < 5], y[y < 5]
        net = mlp(64, 128, 96, 5)
        opt = torch.optim.Adam(net.parameters(), lr=1e-2)
        with torch.enable_grad():
            for _ in range(60):
                opt.zero_grad()
                F.cross_entropy(net(x), y).backward()
                opt.step()
    return net


def others(size: int, seed: int) -> tuple:
    """Give the digits 5 to 9 as classes 0 to 4."""
    x, y, a, b = digits()
    x, y, a, b = x.flatten(1)[y > 4], y[y > 4] - 5, a.flatten(1)[b > 4], b[b > 4] - 5
    return batches(x, y, seed=seed, size=size), hits(a, b)


class Adapter(nn.Module):
    """A frozen linear layer with a low-rank change."""

    def __init__(self, inner: nn.Linear, zero: bool) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(8, inner.in_features) if zero else torch.randn(8, inner.in_features) * 0.2)
        self.up = nn.Parameter(torch.zeros(inner.out_features, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.T @ self.up.T


class Adapted(LightningModule):
    """Only adapters learn."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.net = pretrained()
        for i in (0, 2, 4):
            self.net[i] = Adapter(self.net[i], zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def adapter(faulty: bool, seed: int) -> Setup:
    return Setup(Adapted(faulty), *others(32, seed), epochs=8)


class Tuned(LightningModule):
    """A backbone and a new head; the optimizer is built before or after the head is new."""

    def __init__(self, fault: str = "", thaw: int = 0) -> None:
        super().__init__()
        self.thaw = thaw
        self.net = pretrained()
        for p in self.net[:4].parameters():
            p.requires_grad_(False)
        self.early = torch.optim.Adam(self.net[4].parameters(), lr=1e-2) if fault == "stale" else None
        self.net[4] = nn.Linear(96, 5)
        if fault == "all":
            self.net.requires_grad_(False)
            self.net[4].bias.requires_grad_(True)

    def on_train_epoch_start(self) -> None:
        if self.thaw and self.current_epoch == self.thaw:
            self.net.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.early or torch.optim.Adam(self.net.parameters(), lr=1e-2)


def tuned(fault: str, thaw: int = 0) -> Callable[[bool, int], Setup]:
    def make(faulty: bool, seed: int) -> Setup:
        return Setup(Tuned(fault if faulty else "", thaw), *others(32, seed), epochs=8)

    return make


class Distilled(LightningModule):
    """A small student of a frozen teacher that knows five digits; no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = pretrained().requires_grad_(False).eval()
        self.student = mlp(64, 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        (x,) = batch
        with torch.no_grad():
            goal = (self.teacher(x) / 2).softmax(-1)
        out = self(x) / 2
        return F.kl_div(out.log_softmax(-1), goal, reduction="batchmean") * 4

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=3e-3)


def distilled(_: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    x, a, b = x.flatten(1)[y < 5], a.flatten(1)[b < 5], b[b < 5]
    return Setup(Distilled(), batches(x, seed=seed), hits(a, b), epochs=8)


class Tower(LightningModule):
    """A deep plain net whose activation and start are given."""

    def __init__(
        self, act: type[nn.Module], start: Callable[[Tensor], object] | None, depth: int, recompute: bool = False
    ):
        super().__init__()
        self.recompute, self.lr = recompute, 0.05
        self.net = mlp(64, *[32] * depth, 10, act=act)
        if start is not None:
            for p in self.net.parameters():
                if p.dim() == 2:
                    start(p)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) * 2 - 0.6
        if self.recompute and self.training:
            half = len(self.net) // 2
            x = checkpoint(self.net[:half], x, use_reentrant=False)
            return checkpoint(self.net[half:], x, use_reentrant=False)
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def narrow(w: Tensor) -> object:
    return nn.init.normal_(w, std=0.01)


def same(w: Tensor) -> object:
    return nn.init.constant_(w, 0.05)


def wide(w: Tensor) -> object:
    return nn.init.normal_(w, std=1.0)


def he(w: Tensor) -> object:
    return nn.init.kaiming_normal_(w)


def lecun(w: Tensor) -> object:
    return nn.init.normal_(w, std=1 / math.sqrt(w.shape[1]))


def tower(
    act: type[nn.Module],
    bad: Callable | None,
    good: Callable | None,
    depth: int,
    recompute: bool = False,
    lr: float = 0.05,
) -> Callable[[bool, int], Setup]:
    def make(faulty: bool, seed: int) -> Setup:
        x, y, a, b = digits()
        module = Tower(act, bad if faulty else good, depth, recompute)
        module.lr = lr
        return Setup(module, batches(x, y, seed=seed), hits(a, b), epochs=5)

    return make


class Triplet(LightningModule):
    """Hardest triplets in a batch; the loss falls to zero for most."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(64, 64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x.flatten(1)), dim=-1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        z, y = self(batch[0]), batch[1]
        far, alike = 1 - z @ z.T, y[:, None] == y[None]
        hard = far.masked_fill(~alike, -1).amax(1) - far.masked_fill(alike, 9).amin(1)
        return F.relu(0.4 + hard).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def triplet(_: bool, seed: int) -> Setup:
    x, y, a, b = digits()

    def score(module: LightningModule) -> float:
        known, new = outputs(module, x), outputs(module, a)
        middles = torch.stack([known[y == k].mean(0) for k in range(10)])
        return (torch.cdist(new, middles).argmin(1) == b).float().mean().item()

    return Setup(Triplet(), batches(x, y, seed=seed, size=64), score, epochs=6)


class Experts(LightningModule):
    """Sends each row to the best two of six experts, some of which see little."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 6)
        self.experts = nn.ModuleList(mlp(64, 16, 10) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        score, pick = self.gate(x).topk(2, -1)
        share = score.softmax(-1)
        out = x.new_zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            row, slot = (pick == i).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, share[row, slot, None] * expert(x[row]))
        return out

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def experts(_: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Experts(), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Hinge(LightningModule):
    """A linear support vector machine by a subgradient; most rows soon give none."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.multi_margin_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=1e-3)


def hinge(_: bool, seed: int) -> Setup:
    x, y, a, b = cancer()
    return Setup(Hinge(), batches(x, y, seed=seed, size=4), hits(a, b), epochs=1)


class Adversarial(Tower):
    """Learns from moons moved against it by one signed step."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU, None, 2)
        self.net = mlp(2, 48, 48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch[0].clone().requires_grad_(), batch[1]
        (slope,) = torch.autograd.grad(F.cross_entropy(self(x), y), x)
        return F.cross_entropy(self((x + 0.1 * slope.sign()).detach()), y)


def adversarial(_: bool, seed: int) -> Setup:
    x, y, a, b = moons()
    return Setup(Adversarial(), batches(x, y, seed=seed), hits(a, b), epochs=5)


PROGRAMS = (
    Program("adapter-both-zero", "fine-tuning", "Hu et al. 2022", adapter,
            "Both factors of the adapters start at zero, so neither gets a gradient.", "Starts one of them at random."),
    Program("optimizer-of-old-head", "fine-tuning", "practice", tuned("stale"),
            "The optimizer was built before the head was replaced and steps the old one.", "Builds it afterwards."),
    Program("froze-the-head-too", "fine-tuning", "practice", tuned("all"),
            "Freezing came after the new head and froze its weight as well.", "Freezes the backbone alone."),
    Program("tower-tiny-start", "deep nets", "Glorot and Bengio 2010", tower(nn.Tanh, narrow, lecun, 7),
            "Weights start with deviation 0.01 in a deep tanh net, so signals fade.", "Starts by LeCun."),
    Program("tower-constant-start", "deep nets", "", tower(nn.ReLU, same, None, 3),
            "All weights start equal, so all units of a layer stay equal.", "Starts at random."),
    Program("tower-wide-start", "deep nets", "He et al. 2015", tower(nn.ReLU, wide, he, 8, lr=0.01),
            "Weights start with deviation 1 in a deep ReLU net, so signals and gradients blow up.", "Starts by He."),
    Program("adapters", "fine-tuning", "Hu et al. 2022", lambda _, seed: adapter(False, seed)),
    Program("thawed-later", "fine-tuning", "Howard and Ruder 2018", tuned("", 3)),
    Program("distillation", "distillation", "Hinton et al. 2015", distilled),
    Program("selu-tower", "deep nets", "Klambauer et al. 2017", tower(nn.SELU, lecun, lecun, 10, lr=3e-3)),
    Program("recomputed-tower", "deep nets", "", tower(nn.ELU, None, he, 6, True, 0.01)),
    Program("hard-triplets", "metric learning", "Schroff et al. 2015", triplet),
    Program("experts", "mixture of experts", "Shazeer et al. 2017", experts),
    Program("hinge-tiny-batch", "tabular", "", hinge),
    Program("adversarial-training", "robustness", "Goodfellow et al. 2015", adversarial),
)  # fmt: skip
