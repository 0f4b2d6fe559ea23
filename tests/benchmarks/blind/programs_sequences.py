"""Bugs in recurrent networks and transformers."""

from __future__ import annotations

from functools import partial

import torch
from blind.programs_base import Split, split
from torch import Tensor, nn
from torch.nn import functional


def padded(length: int, top: float = 1.0) -> Split:
    """Ten numbers and then zeros; the class says which half of the ten has the greater sum."""
    draw = torch.Generator().manual_seed(0)
    x = torch.zeros(1200, length, 1)
    x[:, :10, 0] = torch.randn(1200, 10, generator=draw)
    return split(top * x, (x[:, :5, 0].sum(1) > x[:, 5:10, 0].sum(1)).long())


def recalled(length: int) -> Split:
    """Tokens; the first is the class."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(12, (1200, length), generator=draw)
    x[:, 0] = torch.randint(6, (1200,), generator=draw)
    return split(x, x[:, 0].clone())


class AtStep(nn.Module):
    """An LSTM, and the state at one of its steps."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.rnn, self.head, self.step = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 2), step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, self.step])


class Identity(nn.Module):
    """A recurrent network with ReLU; its state's weights start as a multiple of the identity."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(1, 48, nonlinearity="relu", batch_first=True), nn.Linear(48, 10)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(gain * torch.eye(48))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Gated(nn.Module):
    """An LSTM over tokens, with a start for its forget gate or its recurrent weights."""

    def __init__(self, forget: float = 0.0, spread: float = 0.0) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(12, 16), nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 6)
        with torch.no_grad():
            self.rnn.bias_hh_l0[32:64] = forget
            if spread:
                self.rnn.weight_hh_l0.normal_(std=spread)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(x))[0][:, -1])


class Attention(nn.Module):
    """One head of attention by hand, over the rows of a digit."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.parts, self.head = nn.Linear(8, 64), nn.Linear(64, 192), nn.Linear(64, 10)
        self.place, self.scale = nn.Parameter(torch.randn(8, 64)), scale

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(self.first(x) + self.place).chunk(3, -1)
        return self.head(((query @ key.transpose(1, 2) * self.scale).softmax(-1) @ value).mean(1))


class Encoder(nn.Module):
    """A transformer over the rows of a digit."""

    def __init__(self, layers: int, first: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) / 5)
        kind = partial(nn.TransformerEncoderLayer, 32, 4, 64, dropout=0.0, batch_first=True, norm_first=first)
        self.blocks, self.head = nn.ModuleList(kind() for _ in range(layers)), nn.Linear(32, 10)
        if not norm:
            for block in self.blocks:
                block.norm1, block.norm2 = nn.Identity(), nn.Identity()
                block.norm1.eps, block.norm2.eps = 0.0, 1.0  # unlike: PyTorch then takes no fast path
                nn.init.normal_(block.linear2.weight, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Tagger(nn.Module):
    """A GRU that says for each token whether it is the greatest so far."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])[..., 0]


def tags(length: int = 60) -> Split:
    x = torch.randn(800, length, 1, generator=torch.Generator().manual_seed(0))
    return split(x, (x[..., 0].cumsum(1) > 0).float())


def over_steps(output: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, y, reduction="sum")
