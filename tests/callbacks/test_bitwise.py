"""Watching changes nothing: the weights are bit for bit those of an unwatched run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from models import Net, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch import GradientMonitor

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from workloads import Transformer, resnet18


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 12, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp-dropout": (dropout_mlp, lambda: torch.randn(64, 6)),
    "resnet-18, in-place": (lambda: resnet18(width=4), lambda: torch.randn(64, 3, 8, 8)),
    "lstm": (Lstm, lambda: torch.randn(64, 9, 6)),
    "transformer": (lambda: Transformer(layers=2, width=16), lambda: torch.randint(0, 100, (64, 12))),
}


def weights_after_50_steps(tmp_path: Path, name: str, *callbacks: Callback, **options: Any) -> dict[str, Tensor]:
    seed_everything(0, verbose=False)
    network, inputs = NETWORKS[name]
    model, x = Net(network(), lr=0.1), inputs()
    loader = DataLoader(TensorDataset(x, torch.randint(0, 3, (64,))), batch_size=16, shuffle=True)
    trainer(tmp_path, *callbacks, max_steps=50, **options).fit(model, loader)
    return model.state_dict()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_bitwise_those_of_an_unwatched_run(tmp_path: Path, name: str, clip: float | None) -> None:
    monitor = GradientMonitor(
        every_n_steps=1, summary=False, on_finding=lambda finding: None, total_norm_every_step=True
    )
    bare = weights_after_50_steps(tmp_path, name, gradient_clip_val=clip)
    watched = weights_after_50_steps(tmp_path, name, monitor, gradient_clip_val=clip)
    assert len(monitor.history) == 50
    assert all(torch.equal(bare[key], watched[key]) for key in bare)
