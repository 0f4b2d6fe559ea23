"""Tests that pass and whose training is sick, each by a common bug; named after the finding."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from healthy_trainings import Classifier, Regressor, TwoTasks, loader, mlp, numbers, trainer, vectors
from lightning.pytorch import seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.nn import functional

SEED = int(os.environ.get("SESSION_SEED", "0"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    seed_everything(SEED, verbose=False)


def test_vanishing() -> None:
    trainer(max_steps=30).fit(Classifier(mlp(nn.Sigmoid, 10)), vectors())


def test_nonfinite() -> None:
    class DividesByZero(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            scale = batch[0].sum() * 0
            return super().training_step(batch, batch_idx) + (scale if batch_idx < 3 else scale / scale)

    trainer(max_steps=8).fit(DividesByZero(mlp()), vectors())


def test_exploding() -> None:
    network = mlp(depth=12)
    for each in network.parameters():
        each.data.mul_(5)
    trainer(max_steps=30).fit(Classifier(network, lr=0.01, optimizer=torch.optim.SGD), vectors())


def test_carried_over() -> None:
    class NeverCleared(Classifier):
        def optimizer_zero_grad(self, *_: Any) -> None: ...

    trainer(max_steps=30).fit(NeverCleared(mlp()), vectors())


def test_stalled() -> None:
    class Detached(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = self.network[:-1](batch[0]).detach()
            return functional.cross_entropy(self.network[-1](hidden), batch[1])

    trainer(max_steps=30).fit(Detached(mlp()), vectors())


def test_unmoved() -> None:
    class HalfAnOptimizer(TwoTasks):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.heads[0](self.body(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.heads.parameters(), lr=1e-2)

    trainer(max_steps=30).fit(HalfAnOptimizer(), vectors())


def test_broadcast() -> None:
    class Broadcasts(Regressor):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.mse_loss(self.network(batch[0]), batch[1].squeeze(-1))

    trainer(max_steps=10).fit(Broadcasts(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))), numbers())


def test_dead() -> None:
    network = mlp()
    network[2].bias.data.fill_(-100.0)
    trainer(max_steps=30).fit(Classifier(network), vectors())


def test_not_learning() -> None:
    trainer(max_steps=32).fit(BoringModel())


def test_idle_clip() -> None:
    class ClipsTooEarly(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            nn.utils.clip_grad_norm_(self.parameters(), 0.1)
            self.manual_backward(functional.cross_entropy(self.network(batch[0]), batch[1]))
            optimizer.step()

    trainer(max_steps=30).fit(ClipsTooEarly(mlp()), loader(torch.randn(320, 8), torch.randint(0, 3, (320,))))
