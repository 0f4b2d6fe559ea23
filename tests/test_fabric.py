"""The same in Fabric as in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from gradwatch import Watcher, watch


def train(use_fabric: bool, steps: int = 8) -> Watcher:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fabric = Fabric(accelerator="cpu", devices=1)
    forward, stepped = fabric.setup(model, optimizer) if use_fabric else (model, optimizer)
    with watch(model) as watcher:
        for _ in range(steps):
            stepped.zero_grad()
            loss = forward(torch.randn(16, 4)).square().mean()
            fabric.backward(loss)
            watcher.read(stepped)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            watcher.step(stepped, loss)
    return watcher


def test_fabric_gives_the_same_snapshots() -> None:
    plain, fabric = train(use_fabric=False), train(use_fabric=True)
    assert fabric.history[0].layers == ("0", "1", "2")
    for one, other in zip(plain.history, fabric.history, strict=True):
        assert other.step == one.step
        assert other.loss == one.loss
        assert other.total_norm == one.total_norm
        assert other.total_norm_after == pytest.approx(0.1, rel=1e-3)
        assert other.grad_output_norm.tolist() == one.grad_output_norm.tolist()
