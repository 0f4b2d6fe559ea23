"""Small LightningModules that the callbacks' tests train."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    """A classifier around any network; ``faults`` maps a batch index to what is done to its loss."""

    def __init__(self, network: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def mlp(activation: type[nn.Module] = nn.ReLU, depth: int = 2, width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(8 if i == 0 else width, width), activation()]
        if activation is nn.ReLU:
            nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers, nn.Linear(width, 3))


def loader(samples: int = 640, batch: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), batch_size=batch)


def trainer(tmp_path: Any, *callbacks: Callback, **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu", "max_steps": 30, "logger": False, "default_root_dir": tmp_path,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def assert_no_hooks(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for param in model.parameters():
        assert not param._backward_hooks
