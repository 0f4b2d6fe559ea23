"""The cases of the zoo: unusual modules and unusual trainings, and their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo_run import Run

from gradwatch import Snapshot

STEPS = 3
WIDTH = 6

UNCALLED = "was called as a module"  # text in the warning about layers that no hook reaches
Expect = Callable[[Sequence[Snapshot]], None]


def rows(count: int = 8) -> Tensor:
    """A batch of rows; drawn anew at each call."""
    return torch.randn(count, WIDTH)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)


def mean_square(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a model that puts out one tensor."""
    return model(batch).square().mean()


def mlp() -> nn.Module:
    """An ordinary network."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))


class Scale(nn.Module):
    """Owns a weight, so that it is a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x: Tensor) -> Any:
        return x * self.weight


class Between(nn.Module):
    """An odd part between two ordinary layers; ``take`` makes a tensor of its output."""

    def __init__(self, odd: nn.Module, take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(WIDTH, WIDTH), odd, nn.Linear(WIDTH, 2)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.take(self.odd(self.first(x))))


@dataclass(frozen=True, kw_only=True)
class Case:
    """The settings that all cases share.

    Attributes:
        name: of the case.
        expect: checks the Snapshots of a watched run.
        says: text in a warning that gradwatch may give.
        skip: reason why it can't run here; empty if it can.
        error: text in the error that ends the bare run; empty if there is none.
        idle: it makes no step.
    """

    name: str
    expect: Expect | None = None
    says: str = ""
    skip: str = ""
    error: str = ""
    idle: bool = False


@dataclass(frozen=True, kw_only=True)
class ModuleCase(Case):
    """An unusual module and how it is trained.

    Attributes:
        make: makes the module.
        batch: draws a batch.
        loss: makes the loss of the module and a batch.
        optimizer: makes the optimizer of the module.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Any] = rows
    loss: Callable[[Any, Any], Tensor] = mean_square
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd

    def loop(self, run: Run) -> None:
        model = run.keep(self.make())
        optimizer = run.keep(self.optimizer(model))
        with run.watch(model) as watcher:
            for _ in range(STEPS):
                batch = self.batch()
                optimizer.zero_grad()
                loss = run.note(self.loss(model, batch), batch)
                loss.backward()
                watcher.step(optimizer, loss)

    def fit(self, run: Run) -> None:
        run.trainer(max_steps=STEPS).fit(run.keep(FitOfModule(self, run)))


class FitOfModule(LightningModule):
    """Trains the module of a case; draws the batches in the step, as odd ones pass no loader."""

    def __init__(self, case: ModuleCase, run: Run) -> None:
        super().__init__()
        self.case, self.run, self.net = case, run, case.make()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self.case.batch()
        return self.run.note(self.case.loss(self.net, batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.run.keep(self.case.optimizer(self.net))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(STEPS))


@dataclass(frozen=True, kw_only=True)
class TrainingCase(Case):
    """An unusual training: ``train`` does all of it with the given Run."""

    train: Callable[[Run], None]


MODULES: list[ModuleCase] = []
FITS: list[TrainingCase] = []
LOOPS: list[TrainingCase] = []


def module(**options: Any) -> Callable[[Any], Any]:
    """Register a class or function as the maker of a case's module."""

    def register(make: Any) -> Any:
        MODULES.append(ModuleCase(name=make.__name__, make=make, **options))
        return make

    return register


def part(take: Callable[[Any], Tensor] = lambda output: output, **options: Any) -> Callable[[Any], Any]:
    """Register a class or function as the maker of an odd part between two ordinary layers."""

    def register(make: Any) -> Any:
        MODULES.append(ModuleCase(name=make.__name__, make=lambda: Between(make(), take), **options))
        return make

    return register


def in_step(make: Callable[[], nn.Module] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Register a function of the model and a batch that is called in each step, before the forward pass."""

    def register(do: Any) -> Any:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            do(model, batch)
            return mean_square(model, batch)

        MODULES.append(ModuleCase(name=do.__name__, make=make or mlp, loss=loss, **options))
        return do

    return register


def loss_of(make: Callable[[], nn.Module] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Register a function that makes the loss of the model and a batch."""

    def register(loss: Any) -> Any:
        MODULES.append(ModuleCase(name=loss.__name__, make=make or mlp, loss=loss, **options))
        return loss

    return register


def fit(**options: Any) -> Callable[[Any], Any]:
    """Register a function that trains with ``run.trainer``."""

    def register(train: Any) -> Any:
        FITS.append(TrainingCase(name=train.__name__, train=train, **options))
        return train

    return register


def loop(**options: Any) -> Callable[[Any], Any]:
    """Register a function that trains with ``run.watch``."""

    def register(train: Any) -> Any:
        LOOPS.append(TrainingCase(name=train.__name__, train=train, **options))
        return train

    return register


def has_columns(*columns: str, layer: str = "odd", where: str = "") -> Expect:
    """Return a check that a layer has a finite value in each column of each Snapshot."""

    def check(history: Sequence[Snapshot]) -> None:
        assert history, "no step was measured"
        for snapshot in history:
            names = [name for name in snapshot.layers if name in (layer, f"net.{layer}")]
            assert names, f"no layer {layer} among {snapshot.layers}"
            for column in columns:
                value = getattr(snapshot, column)[snapshot.layers.index(names[0])]
                assert np.isfinite(value), f"{column} of {layer} is {value} at step {snapshot.step}"

    return check


class Net(LightningModule):
    """A small network on rows drawn as it goes; the cases change what they need."""

    def __init__(self, run: Run, net: nn.Module | None = None, batches: int = STEPS) -> None:
        super().__init__()
        self.run, self.batches = run, batches
        self.net = mlp() if net is None else net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self) -> Tensor:
        x = rows()
        return self.run.note(self(x).square().mean(), x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss()

    def configure_optimizers(self) -> Any:
        return self.run.keep(torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5))

    def train_dataloader(self) -> Any:
        return DataLoader(range(self.batches))
