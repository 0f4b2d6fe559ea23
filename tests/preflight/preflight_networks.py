"""Networks and batches that a preflight is tried on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 5


def he(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
    return model


def mlp(activation: type[nn.Module], depth: int, width: int = 64, out: int = CLASSES) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(16 if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, out))


class Residual(nn.Module):
    """Blocks x + gate * branch(x), with the ends of the branches or the gates at zero."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.branches = nn.ModuleList(
            he(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))) for _ in range(6)
        )
        start = {"rezero": 0.0, "layerscale": 1e-5, "fixup": 1.0}[kind]
        self.gates = nn.ParameterList(torch.full((32 if kind == "layerscale" else 1,), start) for _ in range(6))
        self.head = nn.Linear(32, CLASSES)
        if kind == "fixup":
            for layer in (self.head, *(branch[2] for branch in self.branches)):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch, gate in zip(self.branches, self.gates, strict=True):
            x = x + gate * branch(x)
        return self.head(x)


class ResNet(nn.Module):
    def __init__(self, zero_gamma: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(8)
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)
        if zero_gamma:
            for block in self.blocks:
                nn.init.zeros_(block[4].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(-1, 1, 4, 4))
        for block in self.blocks:
            x = functional.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(16, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.unsqueeze(1).expand(-1, 12, -1))[0][:, -1])


def labels(*shape: int) -> Tensor:
    return torch.randint(0, CLASSES, shape or (128,))


def classified(x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return (torch.randn(128, 16) if x is None else x), labels()


def with_softmax() -> nn.Module:
    return nn.Sequential(he(mlp(nn.ReLU, 3)), nn.Softmax(-1))
