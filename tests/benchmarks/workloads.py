"""The networks for measuring costs: random data, always the same batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a network, its inputs and its targets


def of_classes(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of one class a sample."""
    return functional.cross_entropy(network(x), y)


def of_next_token(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss that a language model of transformers computes by itself: cross-entropy of each next token."""
    loss: Tensor = network(input_ids=x, labels=y).loss
    return loss


class Trained(LightningModule):
    """A loss and SGD around any network."""

    def __init__(self, network: nn.Module, loss: Loss = of_classes) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self.network, *batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


Draw = Callable[[Tensor], object]  # sets the entries of a weight


def mlp(layers: int = 64, width: int = 128, draw: Draw | None = nn.init.kaiming_normal_) -> nn.Module:
    """Linear and ReLU.

    With He initialization, the default of ``draw``, the gradients are healthy. With None the weights are those that
    PyTorch draws, under which the gradient vanishes.
    """
    blocks: list[nn.Module] = []
    for _ in range(layers):
        linear = nn.Linear(width, width)
        if draw is not None:
            draw(linear.weight)
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


def gpt2(layers: int = 12, width: int = 256, vocabulary: int = 1000, length: int = 64) -> nn.Module:
    """GPT-2 of transformers, made from a configuration: its layers and dropouts, and fewer, narrower weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": layers, "n_embd": width, "n_head": 4, "vocab_size": vocabulary, "n_positions": length}
    # The usual ends of a text are no tokens of so small a vocabulary.
    known: dict[str, Any] = {**shape, "bos_token_id": 0, "eos_token_id": 0}
    network: nn.Module = GPT2LMHeadModel(GPT2Config(**known))
    return network


def is_missing(package: str | None) -> bool:
    """Return True for a package that is needed and not installed."""
    return package is not None and importlib.util.find_spec(package) is None


def some_classes(x: Tensor) -> Tensor:
    return torch.randint(0, CLASSES, (len(x),))


@dataclass(frozen=True)
class Workload:
    """A network, its data, and the steps of a turn.

    Attributes:
        network, inputs: make them anew.
        steps: of a turn.
        targets: makes those of the inputs.
        loss: of the network, its inputs and its targets.
        requires: package that it needs; without it the workload is left out.
    """

    network: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    steps: int
    targets: Callable[[Tensor], Tensor] = some_classes
    loss: Loss = of_classes
    requires: str | None = None

    def module(self) -> Trained:
        torch.manual_seed(0)
        return Trained(self.network(), self.loss)

    def loader(self) -> DataLoader[Batch]:
        torch.manual_seed(1)
        inputs = self.inputs()
        return DataLoader(Same((inputs, self.targets(inputs))), batch_size=None)

    @property
    def is_missing(self) -> bool:
        return is_missing(self.requires)


MAIN = ("mlp-64", "resnet-18", "transformer-6", "rnn-cell-50")  # the four that docs/costs.md compares throughout

WORKLOADS = {
    "mlp-64": Workload(mlp, lambda: torch.randn(128, 128), 10),
    "resnet-18": Workload(resnet18, lambda: torch.randn(32, 3, 32, 32), 2),
    "transformer-6": Workload(Transformer, lambda: torch.randint(0, 100, (16, 64)), 2),
    "rnn-cell-50": Workload(Recurrent, lambda: torch.randn(128, 50, 32), 10),
    "mlp-64-default": Workload(lambda: mlp(draw=None), lambda: torch.randn(128, 128), 10),
    "gpt2-12": Workload(
        gpt2, lambda: torch.randint(0, 1000, (8, 64)), 2,
        targets=Tensor.clone, loss=of_next_token, requires="transformers",
    ),
}  # fmt: skip
