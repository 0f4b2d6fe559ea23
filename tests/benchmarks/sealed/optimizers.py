"""Optimizers, their arguments and schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sealed.base import Program, Setup, batches, digits, explained, friedman, hits, mlp, moons
from torch import Tensor, nn

Make = Callable[[bool, int], Setup]


class Digits(LightningModule):
    """A digit classifier whose optimizer is given from outside."""

    def __init__(self, optimizer: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = mlp(64, 48, 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self)


def chosen(bad: Callable[[nn.Module], Any], good: Callable[[nn.Module], Any], size: int = 32, **trainer: Any) -> Make:
    def make(faulty: bool, seed: int) -> Setup:
        x, y, a, b = digits()
        return Setup(
            Digits(bad if faulty else good), batches(x, y, seed=seed, size=size), hits(a, b), epochs=4, trainer=trainer
        )

    return make


def sgd(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)


def adam(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(m.parameters(), lr=3e-3)


def one_cycle(interval: str) -> Callable[[nn.Module], Any]:
    def build(m: nn.Module) -> dict:
        opt = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
        rate = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=180, div_factor=1000)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": rate, "interval": interval}}

    return build


def exponential(interval: str) -> Callable[[nn.Module], Any]:
    def build(m: nn.Module) -> dict:
        opt = torch.optim.SGD(m.parameters(), lr=0.4)
        rate = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.7)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": rate, "interval": interval}}

    return build


def warmup(whole: bool) -> Callable[[nn.Module], Any]:
    def ramp(step: int) -> float:
        return (step + 1) // 250 if whole else min(1.0, (step + 1) / 50)

    def build(m: nn.Module) -> dict:
        opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
        return {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(opt, ramp), "interval": "step"},
        }

    return build


def partial_groups(m: nn.Module) -> torch.optim.Optimizer:
    named = [p for n, p in m.named_parameters() if "bias" in n]  # meant: exempt biases from decay
    return torch.optim.AdamW(named, lr=3e-3, weight_decay=0.0)


def decay_groups(m: nn.Module) -> torch.optim.Optimizer:
    bias = [p for n, p in m.named_parameters() if "bias" in n]
    rest = [p for n, p in m.named_parameters() if "bias" not in n]
    return torch.optim.AdamW([{"params": rest, "weight_decay": 0.05}, {"params": bias, "weight_decay": 0.0}], lr=3e-3)


def clipped(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    bound = 1e-3 if faulty else 1.0
    return Setup(Digits(sgd), batches(x, y, seed=seed), hits(a, b), epochs=4, trainer={"gradient_clip_val": bound})


class Averaged(Digits):
    """Keeps a moving average of its weights and answers with it."""

    def __init__(self, keep: float) -> None:
        super().__init__(adam)
        self.keep = keep
        self.shadow = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.net if self.training else self.shadow)(x.flatten(1))

    def on_train_batch_end(self, *_: Any) -> None:
        for old, new in zip(self.shadow.parameters(), self.net.parameters(), strict=True):
            old.mul_(self.keep).add_(new.detach(), alpha=1 - self.keep)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=3e-3)


def averaged(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Averaged(0.9998 if faulty else 0.95), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Sharpness(Digits):
    """Sharpness-aware minimization by hand."""

    def __init__(self, faulty: bool) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9))
        self.automatic_optimization = False
        self.faulty = faulty

    def training_step(self, batch: list[Tensor], _: int) -> None:
        opt = self.optimizers()
        weights = [p for p in self.parameters() if p.requires_grad]
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        size = torch.stack([p.grad.norm() for p in weights]).norm() + 1e-12
        shift = [p.grad * 0.15 / size for p in weights]
        with torch.no_grad():
            for p, e in zip(weights, shift, strict=True):
                p.add_(e)
        opt.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        if not self.faulty:
            with torch.no_grad():
                for p, e in zip(weights, shift, strict=True):
                    p.sub_(e)
        opt.step()
        opt.zero_grad()


def sharpness(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Sharpness(faulty), batches(x, y, seed=seed), hits(a, b), epochs=4)


class Accumulator(Digits):
    """Accumulates eight batches by hand."""

    def __init__(self, faulty: bool) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.4))
        self.automatic_optimization = False
        self.faulty = faulty

    def training_step(self, batch: list[Tensor], index: int) -> None:
        opt = self.optimizers()
        loss = F.cross_entropy(self(batch[0] * 2), batch[1])
        self.manual_backward(loss if self.faulty else loss / 8)
        if (index + 1) % 8 == 0:
            opt.step()
            opt.zero_grad()


def accumulated(faulty: bool, seed: int) -> Setup:
    x, y, a, b = digits()
    return Setup(Accumulator(faulty), batches(x, y, seed=seed, size=4), hits(a * 2, b), epochs=2)


class Newton(LightningModule):
    """Full batch L-BFGS, whose closure Lightning calls many times a step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 24, 1, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)


def newton(_: bool, seed: int) -> Setup:
    x, y, a, b = friedman()
    return Setup(Newton(), batches(x[:800], y[:800], seed=seed, size=800), explained(a, b), epochs=60)


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a mixed momentum (Chen et al. 2023), written anew."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.add_(torch.sign(0.9 * m + 0.1 * p.grad), alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)
        return loss


def plateau(m: nn.Module) -> dict:
    opt = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    rate = torch.optim.lr_scheduler.SequentialLR(
        opt,
        [
            torch.optim.lr_scheduler.LinearLR(opt, 0.01, total_iters=20),
            torch.optim.lr_scheduler.CosineAnnealingLR(opt, 150),
        ],
        milestones=[20],
    )
    return {"optimizer": opt, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def sharp_pairs(_: bool, seed: int) -> Setup:
    x, y, a, b = moons()
    module = Digits(lambda m: torch.optim.Rprop(m.parameters(), lr=5e-3))
    module.net = mlp(2, 32, 2, act=nn.Tanh)
    return Setup(module, batches(x, y, seed=seed, size=1200), hits(a, b), epochs=100)


def healthy(build: Callable[[nn.Module], Any], size: int = 32, **trainer: Any) -> Make:
    return chosen(build, build, size, **trainer)


PROGRAMS = (
    Program("one-cycle-per-epoch", "optimizers", "practice", chosen(one_cycle("epoch"), one_cycle("step")),
            "OneCycleLR counts steps but is stepped once an epoch, so the rate stays at its tiny start.",
            "Steps it each batch."),
    Program("decay-per-step", "optimizers", "practice", chosen(exponential("step"), exponential("epoch")),
            "An epoch's decay of 0.7 is applied each batch, and the rate vanishes.", "Steps it each epoch."),
    Program("warmup-whole-division", "optimizers", "", chosen(warmup(True), warmup(False)),
            "The warm-up divides with // and gives 0 for the whole run.", "Divides with / over 50 steps."),
    Program("only-biases-optimized", "optimizers", "", chosen(partial_groups, decay_groups),
            "Only the biases' group is handed to the optimizer.", "Hands over both groups."),
    Program("decay-of-one-in-adam", "optimizers", "Loshchilov and Hutter 2019",
            chosen(lambda m: torch.optim.Adam(m.parameters(), lr=3e-3, weight_decay=1.0), adam),
            "Adam's weight_decay is an L2 term; 1.0 of it outweighs the loss.", "Uses none."),
    Program("clipped-to-nothing", "optimizers", "", clipped,
            "Gradients are clipped to a norm of 0.001, so SGD crawls.", "Clips to 1."),
    Program("average-too-slow", "optimizers", "practice of EMA", averaged,
            "The averaged weights keep 0.9998 of the old and remain near their start.", "Keeps 0.95."),
    Program("sam-not-restored", "optimizers", "Foret et al. 2021", sharpness,
            "The climb of SAM isn't taken back before the step, so weights drift uphill.", "Takes it back."),
    Program("accumulated-not-divided", "optimizers", "practice", accumulated,
            "Gradients of eight batches are summed with a rate meant for their mean.", "Divides by eight."),
    Program("lbfgs-full-batch", "optimizers", "", newton),
    Program("lion", "optimizers", "Chen et al. 2023", healthy(lambda m: Lion(m.parameters(), 1e-3))),
    Program("warmup-cosine-momentum", "optimizers", "", healthy(plateau)),
    Program("rprop-full-batch", "optimizers", "", sharp_pairs),
    Program("accumulation-of-trainer", "optimizers", "", healthy(sgd, 8, accumulate_grad_batches=2)),
    Program("large-batch", "optimizers", "", lambda _, seed: Setup(
        Digits(lambda m: torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9)),
        batches(digits()[0], digits()[1], seed=seed, size=640), hits(*digits()[2:]), epochs=40)),
)  # fmt: skip
