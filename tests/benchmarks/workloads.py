"""The networks for measuring costs: random data, always the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

Batch = tuple[Tensor, Tensor]
CLASSES = 10


class Same(IterableDataset[Batch]):
    """One batch, for ever."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


class Classifier(LightningModule):
    """Cross-entropy and SGD around any network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self.network(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def mlp(layers: int = 64, width: int = 128) -> nn.Module:
    """Linear and ReLU, He initialization, so that the gradients are healthy."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight)
        blocks += [linear, nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(width, CLASSES))


class Block(nn.Module):
    """A basic residual block with in-place ReLUs."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


def resnet18(width: int = 64) -> nn.Module:
    """ResNet-18 in its form for 32 x 32 images (He et al. 2015, section 4.2's stem)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inputs = width
    for stage in range(4):
        for block in range(2):
            outputs = width * 2**stage
            layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class Transformer(nn.Module):
    """Six pre-norm encoder layers over 64 tokens."""

    def __init__(self, layers: int = 6, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class Recurrent(nn.Module):
    """A cell that is called at each of 50 steps."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(32, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.head.in_features)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


@dataclass(frozen=True)
class Workload:
    """A network, its data, and the steps of a turn."""

    network: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    batch: int
    steps: int

    def module(self) -> Classifier:
        torch.manual_seed(0)
        return Classifier(self.network())

    def loader(self) -> DataLoader[Batch]:
        torch.manual_seed(1)
        return DataLoader(Same((self.inputs(), torch.randint(0, CLASSES, (self.batch,)))), batch_size=None)


WORKLOADS = {
    "mlp-64": Workload(mlp, lambda: torch.randn(128, 128), 128, 10),
    "resnet-18": Workload(resnet18, lambda: torch.randn(32, 3, 32, 32), 32, 2),
    "transformer-6": Workload(Transformer, lambda: torch.randint(0, 100, (16, 64)), 16, 2),
    "rnn-cell-50": Workload(Recurrent, lambda: torch.randn(128, 50, 32), 128, 10),
}
