"""Training loops and the graph: cut gradients, frozen parts, steps in the wrong order, targets of losses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, digits, explained, friedman, hits, mlp, moons, outputs, rng
from torch import Tensor, nn


class Steps(LightningModule):
    """Manual optimization, with its steps in one order or another."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.fault = fault
        self.net = mlp(64, 48, 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))

    def training_step(self, batch: list[Tensor], _: int) -> None:
        opt = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if self.fault == "cleared":
            self.manual_backward(loss)
            opt.zero_grad()
            opt.step()
            return
        if self.fault != "kept":
            opt.zero_grad()
        self.manual_backward(loss)
        opt.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def steps(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        x, y, a, b = digits()
        return Setup(Steps(fault if faulty else ""), batches(x, y, seed=seed), hits(a, b), epochs=4)

    return make


class Encoder(LightningModule):
    """An encoder through a narrow waist and a head."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.encoder = mlp(64, 48, 4, act=nn.Tanh)
        self.head = mlp(4, 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(1)))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        if self.fault == "no_grad":
            with torch.no_grad():
                z = self.encoder(x.flatten(1))
        else:
            z = self.encoder(x.flatten(1))
        loss = F.cross_entropy(self.head(z), y)
        if self.fault == "rewrapped":
            return torch.tensor(loss.item(), requires_grad=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def encoder(fault: str):
    def make(faulty: bool, seed: int) -> Setup:
        x, y, a, b = digits()
        return Setup(Encoder(fault if faulty else ""), batches(x, y, seed=seed), hits(a, b), epochs=5)

    return make


class MultiTask(LightningModule):
    """Three targets from one trunk; the loop over tasks assigns the loss where it should add."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.trunk = nn.Sequential(nn.Linear(10, 48), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(48, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        return torch.cat([h(z) for h in self.heads], 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        out, y = self(batch[0]), batch[1]
        loss = torch.zeros(())
        for i in range(3):
            task = F.mse_loss(out[:, i], y[:, i])
            loss = task if self.faulty else loss + task
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def three(y: Tensor, x: Tensor) -> Tensor:
    return torch.stack([y, torch.sin(3 * x[:, 0]), x[:, 1] * x[:, 2] * 3], 1)


def last_task_only(faulty: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    return Setup(MultiTask(faulty), batches(x, three(y, x), seed=seed), explained(a, three(b, a)), epochs=4)


class Rounded(LightningModule):
    """Quantizes its code; a straight-through gradient makes that learnable."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.encoder = mlp(64, 48, 6)
        self.head = mlp(6, 32, 10)

    def quantize(self, z: Tensor) -> Tensor:
        hard = torch.round(torch.sigmoid(z) * 3) / 3
        return hard if self.faulty else torch.sigmoid(z) + (hard - torch.sigmoid(z)).detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.quantize(self.encoder(x.flatten(1))))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def rounded(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Rounded(faulty), batches(x, y, seed=seed), hits(a, b), epochs=5)


class Leaky(torch.autograd.Function):
    """An activation whose derivative is written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.wrong = wrong
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.wrong:
            return torch.where(x > 0, -0.1 * grad, grad), None
        return torch.where(x > 0, grad, 0.1 * grad), None


class HandWritten(Encoder):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.layers = nn.ModuleList([nn.Linear(64, 24), nn.Linear(24, 24), nn.Linear(24, 10)])
        del self.encoder, self.head

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = Leaky.apply(layer(x), self.faulty)
        return self.layers[-1](x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def wrong_backward(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(HandWritten(faulty), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Listed(LightningModule):
    """Holds its blocks in a plain list or in a ModuleList."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        sizes = [64, 16, 16, 16]
        blocks = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)]
        self.blocks = blocks if faulty else nn.ModuleList(blocks)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.out(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def plain_list(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Listed(faulty), batches(x, y, seed=seed), hits(a, b), epochs=4)


def sorted_data(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    order = torch.argsort(y)
    module = Steps("")
    return Setup(module, batches(x[order], y[order], seed=seed, shuffle=not faulty), hits(a, b), epochs=3)


class Siamese(LightningModule):
    """Contrastive pairs; y is 1 for alike."""

    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.net = mlp(64, 64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x, y = batch
        mate = torch.arange(len(x)).roll(1)
        alike = (y == y[mate]).float()
        if self.faulty:
            alike = 1 - alike  # the loss of Hadsell et al. has 0 for alike
        gap = (self(x) - self(x)[mate]).pow(2).sum(1)
        near, far = alike * gap, (1 - alike) * F.relu(2 - (gap + 1e-6).sqrt()) ** 2
        return (near + far).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def siamese(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()

    def score(module: LightningModule) -> float:
        known, new = outputs(module, x), outputs(module, a)
        middles = torch.stack([known[y == k].mean(0) for k in range(10)])
        return (torch.cdist(new, middles).argmin(1) == b).float().mean().item()

    return Setup(Siamese(faulty), batches(x, y, seed=seed), score, epochs=6)


class Later(LightningModule):
    """A second head joins halfway; a third one is kept for later work and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 32), nn.ReLU())
        self.first, self.second, self.spare = nn.Linear(32, 2), nn.Linear(32, 1), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.trunk(x))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        z = self.trunk(batch[0])
        loss = F.cross_entropy(self.first(z), batch[1])
        if self.current_epoch >= 2:
            loss = loss + 0.1 * F.mse_loss(self.second(z).squeeze(-1), batch[0].norm(dim=1))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def later(_: bool, seed: int) -> Setup:
    x, y, a, b = moons()
    return Setup(Later(), batches(x, y, seed=seed), hits(a, b), epochs=5)


class Uncertain(MultiTask):
    """Weighs three losses by learned uncertainties, and may go below zero."""

    def __init__(self) -> None:
        super().__init__(False)
        self.log_var = nn.Parameter(torch.zeros(3))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        each = (self(batch[0]) - batch[1]).pow(2).mean(0)
        return (torch.exp(-self.log_var) * each + self.log_var).sum()


def uncertain(_: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    return Setup(Uncertain(), batches(x, three(y, x), seed=seed), explained(a, three(b, a)), epochs=4)


def parity(_: bool, seed: int) -> Setup:
    """Learn the parity of three of ten bits, which begins with a plateau."""
    x = torch.randint(0, 2, (3600, 10), generator=rng(1)).float() * 2 - 1
    y = (x[:, 0] * x[:, 1] * x[:, 2] > 0).long()
    module = Later()
    module.trunk, module.first = mlp(10, 96, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 2))
    module.second = nn.Linear(32, 1)
    return Setup(module, batches(x[:3200], y[:3200], seed=seed), hits(x[3200:], y[3200:]), epochs=2)


PROGRAMS = (
    Program("gradients-never-cleared", "training loops", "practice of manual optimization", steps("kept"),
            "zero_grad is missing, so gradients pile up over all steps.", "Clears them each step."),
    Program("cleared-before-step", "training loops", "practice of manual optimization", steps("cleared"),
            "zero_grad stands between backward and step, so steps have no gradients.", "Clears before backward."),
    Program("encoder-under-no-grad", "training loops", "", encoder("no_grad"),
            "The encoder runs under no_grad and stays as it started.", "Runs it with gradients."),
    Program("loss-rewrapped", "training loops", "Stack Overflow, torch.tensor(loss, requires_grad=True)",
            encoder("rewrapped"), "The loss is wrapped into a new tensor and has no graph.", "Returns the loss."),
    Program("last-task-only", "training loops", "", last_task_only,
            "The loop over tasks overwrites the loss, so only the last head learns.", "Adds the losses."),
    Program("rounding-stops-gradient", "training loops", "Bengio et al. 2013", rounded,
            "round() has a zero derivative and the encoder doesn't learn.", "Passes the gradient straight through."),
    Program("backward-branches-swapped", "training loops", "", wrong_backward,
            "The hand-written backward swaps the branches and turns a sign.", "Has the right derivative."),
    Program("blocks-in-a-list", "training loops", "Stack Overflow, list against ModuleList", plain_list,
            "Blocks in a plain list aren't registered, so the optimizer leaves them out.", "Uses a ModuleList."),
    Program("classes-in-order", "training loops", "practice", sorted_data,
            "Rows are sorted by class and not shuffled, so each class overwrites the last.", "Shuffles."),
    Program("pairs-of-other-meaning", "training loops", "Hadsell et al. 2006", siamese,
            "The pairs' labels mean the opposite, so like is pushed apart.", "Gives 1 to pairs that are alike."),
    Program("head-joins-later", "training loops", "", later),
    Program("learned-task-weights", "training loops", "Kendall et al. 2018", uncertain),
    Program("parity-plateau", "training loops", "Shalev-Shwartz et al. 2017", parity),
)  # fmt: skip
