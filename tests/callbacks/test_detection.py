"""Sick and healthy networks on real data, in a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from models import trainer
from torch import Tensor, nn
from torch.nn import functional

from gradwatch import GradientMonitor
from gradwatch.examples.baseline import Baseline
from gradwatch.examples.data import ImageData
from gradwatch.examples.init_he import He


class BatchNormCNN(LightningModule):
    """Three convolutions with BatchNorm: as healthy as they come."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def watched(tmp_path: Path, make: Any, data: ImageData, steps: int) -> GradientMonitor:
    seed_everything(42, verbose=False)
    monitor = GradientMonitor(every_n_steps=1, summary=False, on_finding=lambda finding: None)
    trainer(tmp_path, monitor, max_steps=steps, limit_val_batches=0).fit(make(), datamodule=data)
    return monitor


def test_the_baseline_is_vanishing_within_20_steps_and_its_layers_are_named(tmp_path: Path) -> None:
    monitor = watched(tmp_path, lambda: Baseline(64), ImageData("digits"), steps=20)
    (finding,) = monitor.findings
    assert finding.kind == "vanishing"
    assert finding.layers == tuple(f"network.block{i}.linear" for i in (1, 2, 3, 4))
    assert finding.value < 1e-5


@pytest.mark.parametrize("make", [lambda: He(64), BatchNormCNN], ids=["relu-he", "batchnorm-cnn"])
def test_healthy_networks_have_no_finding_in_300_steps(tmp_path: Path, make: Any) -> None:
    monitor = watched(tmp_path, make, ImageData("digits", batch_size=128), steps=300)
    assert monitor.history[-1].step == 299
    assert monitor.findings == []


@pytest.mark.parametrize("make", [Baseline, He], ids=["baseline", "relu-he"])
def test_on_fashion_mnist(tmp_path: Path, data_dir: Path, make: Any) -> None:
    monitor = watched(tmp_path, lambda: make(784), ImageData("fashion-mnist", data_dir), steps=50)
    assert [finding.kind for finding in monitor.findings] == (["vanishing"] if make is Baseline else [])


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_classes_of_a_cross_entropy_are_known_in_a_trainer(tmp_path: Path, accumulated: int) -> None:
    monitor = GradientMonitor(summary=False)
    settings = {"max_steps": 3, "limit_val_batches": 0, "accumulate_grad_batches": accumulated}
    trainer(tmp_path, monitor, **settings).fit(BatchNormCNN(), datamodule=ImageData("digits"))
    assert [snapshot.classes for snapshot in monitor.history] == [10.0] * 3
