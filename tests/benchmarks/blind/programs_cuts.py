"""Bugs that keep the gradient from a part of the network."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from blind.programs_base import Split, mlp, split
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer

adam, mse = partial(Adam, lr=3e-3), functional.mse_loss


class Encoded(nn.Module):
    """An encoder to six numbers, which the bug keeps without gradients, and a head."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.Tanh())
        self.head, self.learns = nn.Linear(6, 10), learns

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            code = self.encoder(x)
        return self.head(code)


class MadeAnew(nn.Module):
    """A layer that is made in each forward pass."""

    def __init__(self, anew: bool) -> None:
        super().__init__()
        self.body, self.anew = nn.Linear(64, 32), anew
        self.middle, self.head = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        middle = nn.Linear(32, 32) if self.anew else self.middle
        return self.head(middle(self.body(x).relu()).relu())


class Skipped(nn.Module):
    """A skip connection around a block, through ``.data`` or not."""

    def __init__(self, through_data: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(64, 5), nn.Linear(5, 5), nn.Linear(5, 10)
        self.through_data = through_data

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x.data if self.through_data else x) + self.block(x.data if self.through_data else x).tanh())


class Quantized(nn.Module):
    """An autoencoder whose code is the nearest of 32 vectors."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 8), mlp(8, 64, 64)
        self.codes, self.straight = nn.Parameter(torch.randn(32, 8) / 3), straight

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        code = self.codes[torch.cdist(z, self.codes).argmin(1)]
        return self.decoder(code + z - z.detach() if self.straight else code)


class Through(nn.Module):
    """A body, a function of its output, and a head."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.body, self.head, self.function = mlp(64, 32, 8), nn.Linear(8, 10), function

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if self.function == "threshold":
            z = (z > 0).float()
        elif self.function == "round":
            z = z.round()
        return self.head(z.tanh() if self.function == "tanh" else z)


class Clamped(nn.Module):
    """Numbers cut to a range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.layers, self.low, self.high = mlp(10, 32, 1), low, high
        nn.init.constant_(self.layers[-1].bias, -1.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).clamp(self.low, self.high)


class Steps(nn.Module):
    """A GRU's cell over a sequence; the first token is the class."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.words, self.cell, self.head = nn.Embedding(12, 16), nn.GRUCell(16, 32), nn.Linear(32, 8)
        self.detached = detached

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 32)
        for step in self.words(x).unbind(1):
            state = self.cell(step, state.detach() if self.detached else state)
        return self.head(state)


def first_word(length: int = 8) -> Split:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(12, (1200, length), generator=draw)
    x[:, 0] = torch.randint(8, (1200,), generator=draw)
    return split(x, x[:, 0].clone())


def frozen(last: bool) -> nn.Module:
    network = mlp(64, 32, 10)
    for name, param in network.named_parameters():
        param.requires_grad_(name.endswith("bias") if last else name.startswith("2") or name.startswith("0"))
    return network


def before_replacement(params: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer holds the head, and a body that the network no longer has."""
    *_, weight, bias = params
    return Adam([*mlp(64, 4, 10)[0].parameters(), weight, bias], lr=1e-2)
