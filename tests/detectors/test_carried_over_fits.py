"""Gradients that nobody clears are found in a fit and in a check, and no way of clearing or accumulating alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from small_runs import X, Y, mlp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from gradwatch import CarriedOver, GradientMonitor
from gradwatch.testing import assert_healthy_gradients

ALL = ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")


class Net(LightningModule):
    """Automatic optimization; ``clears`` is what its ``optimizer_zero_grad`` does."""

    def __init__(self, clears: bool = True, make: type[Optimizer] = SGD) -> None:
        super().__init__()
        self.net, self.clears, self.make = mlp([32, 16, 5], nn.Tanh), clears, make

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return cross_entropy(self.net(batch[0]), batch[1])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.clears:
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, Y), batch_size=8)


class Manual(Net):
    def __init__(self, clears: bool = True, accumulate: int = 1, set_to_none: bool = True) -> None:
        super().__init__(clears)
        self.automatic_optimization, self.accumulate, self.set_to_none = False, accumulate, set_to_none

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % self.accumulate == self.accumulate - 1:
            optimizer.step()
            if self.clears:
                optimizer.zero_grad(set_to_none=self.set_to_none)


class Toggled(Manual):
    """Two optimizers in each batch, one of the body and one of the head."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            if self.clears:
                optimizer.zero_grad(set_to_none=self.set_to_none)
            self.manual_backward(Net.training_step(self, batch, batch_idx))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [SGD(self.net[0].parameters(), lr=1e-3), SGD(self.net[2].parameters(), lr=1e-3)]


def fit(module: LightningModule, **options: Any) -> GradientMonitor:
    monitor = GradientMonitor(
        on_finding=lambda finding: None, summary=False, record_path=False, detectors=[CarriedOver()]
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "enable_checkpointing": False, "max_steps": 6, **quiet, **options}
    Trainer(callbacks=[monitor], **settings).fit(module)
    return monitor


def precision() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Net, {}),
        (Net, {"accumulate_grad_batches": 3}),
        (Net, {"plugins": [precision()]}),
        (lambda **clears: Net(make=torch.optim.LBFGS, **clears), {}),
        (Manual, {}),
        (lambda **clears: Manual(set_to_none=False, **clears), {}),
        (lambda **clears: Manual(accumulate=3, **clears), {"max_epochs": 9}),
        (Toggled, {}),
        (lambda **clears: Toggled(set_to_none=False, **clears), {}),
    ],
    ids=["automatic", "accumulated", "fp16", "LBFGS", "manual", "to zero", "by hand", "toggled", "toggled to zero"],
)
def test_a_fit(module: Callable[..., LightningModule], options: dict[str, Any]) -> None:
    healthy, sick = fit(module(), **options), fit(module(clears=False), **options)
    assert len(healthy.history) >= 3
    assert [snapshot.step for snapshot in healthy.history if snapshot.carried_over] == []
    ((kind, step, layers),) = [(finding.kind, finding.step, finding.layers) for finding in sick.findings]
    assert (kind, step) == ("carried-over", 1)
    assert layers == ALL
    assert sick.diagnosis()[0].cause == "gradients are not zeroed"


def test_a_module_that_does_not_clear_fails_the_check() -> None:
    assert assert_healthy_gradients(Net(), DataLoader(TensorDataset(X, Y), batch_size=16)).is_healthy
    with pytest.raises(AssertionError, match="gradients are not zeroed"):
        assert_healthy_gradients(Net(clears=False), DataLoader(TensorDataset(X, Y), batch_size=16))


def test_accumulating_more_batches_than_are_looked_at_is_no_finding() -> None:
    assert fit(Manual(accumulate=70), max_steps=4, max_epochs=40).findings == []
