"""Modules with manual optimization, in all the ways in which an optimizer can step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from small_fits import Regression
from torch import Tensor, nn
from torch.optim import SGD, Optimizer


class Manual(Regression):
    """Manual optimization of a small network."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(optimizer=SGD, **settings)
        self.automatic_optimization = False

    def loss(self) -> Tensor:
        x = self.batch(int(self.seen))
        return (self.net(x).squeeze(-1) - x.sum(1).sin()).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.step(batch_idx)
        self.seen += 1

    def step(self, batch_idx: int) -> None:
        raise NotImplementedError


class ThroughLightning(Manual):
    def step(self, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss())
        optimizer.step()


class Raw(Manual):
    def step(self, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss())
        optimizer.step()


class RawWithClosure(Manual):
    """LBFGS calls its closure up to four times a step."""

    def closure(self, optimizer: Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = self.loss()
        self.manual_backward(loss)
        return loss

    def step(self, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.step(lambda: self.closure(optimizer))

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=4)


class ClosureThroughLightning(RawWithClosure):
    def step(self, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.step(closure=lambda: self.closure(optimizer))


class InTheBackwardPass(Manual):
    """One optimizer a parameter, each of which steps as soon as its gradient is there."""

    def on_fit_start(self) -> None:
        def step(param: nn.Parameter) -> None:
            self.of[param].step()
            self.of[param].zero_grad()

        self.of = {param: SGD([param], lr=0.02, momentum=0.5) for param in self.parameters()}
        self.handles = [param.register_post_accumulate_grad_hook(step) for param in self.parameters()]

    def step(self, batch_idx: int) -> None:
        self.manual_backward(self.loss())

    def on_train_end(self) -> None:
        for handle in self.handles:
            handle.remove()


class Sometimes(Manual):
    """Steps through Lightning, and past it in every third batch."""

    def step(self, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=batch_idx % 3 != 2)
        optimizer.zero_grad()
        self.manual_backward(self.loss())
        optimizer.step()


def two(model: LightningModule) -> list[Optimizer]:
    layers = [layer for layer in model.net if list(layer.parameters())]
    halves = nn.ModuleList(layers[:2]), nn.ModuleList(layers[2:])
    return [SGD(half.parameters(), lr=0.02) for half in halves]


class TwoOptimizers(Manual):
    """The first through Lightning, the second past it."""

    def step(self, batch_idx: int) -> None:
        first, second = self.optimizers()[0], self.optimizers(use_pl_optimizer=False)[1]
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(self.loss())
        first.step()
        second.step()

    def configure_optimizers(self) -> list[Optimizer]:
        return two(self)


def fp16() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))


ANNOUNCED, UNANNOUNCED = ["announced"], ["unannounced"]
SETUPS: dict[str, tuple[Callable[[], LightningModule], bool, list[str]]] = {  # model, fp16, what two batches tell
    "automatic": (Regression, False, ANNOUNCED * 2),
    "automatic 16-mixed": (Regression, True, ANNOUNCED * 2),
    "automatic LBFGS": (lambda: Regression(optimizer=torch.optim.LBFGS, max_iter=3), False, ANNOUNCED * 6),
    "manual": (ThroughLightning, False, ANNOUNCED * 2),
    "manual 16-mixed": (ThroughLightning, True, ANNOUNCED * 2),
    "manual LBFGS": (ClosureThroughLightning, False, ANNOUNCED * 8),
    "raw": (Raw, False, UNANNOUNCED * 2),
    "raw 16-mixed": (Raw, True, UNANNOUNCED * 2),
    "raw LBFGS": (RawWithClosure, False, UNANNOUNCED * 8),
    "in the backward pass": (InTheBackwardPass, False, UNANNOUNCED * 16),
    "two optimizers": (TwoOptimizers, False, [*ANNOUNCED, *UNANNOUNCED] * 2),
}
