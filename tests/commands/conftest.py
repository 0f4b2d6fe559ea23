"""A small project, as a user has it: models, data, and a script with LightningCLI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self, activation: str = "relu", lr: float = 0.05, features: int = 8, fault: str = ""):
        super().__init__()
        self.save_hyperparameters()
        layers = []
        for i in range(8):
            layers += [nn.Linear(features if i == 0 else 32, 32), nn.ReLU() if activation == "relu" else nn.Sigmoid()]
            if activation == "relu":
                nn.init.kaiming_normal_(layers[-2].weight)
        if fault == "init":
            raise ValueError("no such model")
        self.net = nn.Sequential(*layers, nn.Linear(32, 3))

    def training_step(self, batch, batch_idx):
        print("from the training step")
        if self.hparams.fault == "crash":
            raise RuntimeError("100%: boom,\\nreally")
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if self.hparams.fault != "uncleared":
            optimizer.zero_grad()

    def configure_callbacks(self):
        return [ModelCheckpoint(dirpath="checkpoints")]


class WithLoader(Net):
    def train_dataloader(self):
        return make_loader()


def make_loader(batch_size: int = 64):
    x = torch.randn(256, 8)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=batch_size, shuffle=True)


def make_nothing():
    return None


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 64):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return make_loader(self.batch_size)


class LinkedCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.init_args.batch_size", "model.init_args.features")


class OptimizerCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(torch.optim.Adam)
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)
        parser.add_lightning_class_args(LearningRateMonitor, "rates")
        parser.link_arguments("data.batch_size", "model.features")


class FixedCLI(LightningCLI):
    def __init__(self, **kwargs):
        super().__init__(Net, Data, **kwargs)


if __name__ == "__main__":
    import sys
    kind = sys.argv.pop(1)
    LightningCLI(Net, Data) if kind == "fixed" else LightningCLI()
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "smoke_project.py").write_text(PROJECT)
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the current folder, outside of GitHub Actions."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("COLUMNS", "150")
    return project


@pytest.fixture(scope="session")
def config(project: Path) -> dict[str, Path]:
    """Configs as ``fit --print_config`` writes them: of a fixed model class, and of any."""
    wanted = {
        "fixed": ["fixed", "fit"],
        "any": ["any", "fit", "--model", "smoke_project.Net", "--data", "smoke_project.Data"],
    }
    for name, args in wanted.items():
        command = [sys.executable, "smoke_project.py", *args, "--print_config"]
        printed = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=True)
        (project / f"{name}.yaml").write_text(printed.stdout)
    return {name: project / f"{name}.yaml" for name in wanted}
