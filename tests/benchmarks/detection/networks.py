"""Small networks, with an argument for each setting that a fault changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

HE, XAVIER = 2**0.5, 1.0
Norm = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]


def scaled_(layer: nn.Module, gain: float | None, bias: float = 0.0) -> nn.Module:
    """Normal weights of deviation ``gain`` over the root of the fan-in; None leaves torch's own."""
    if gain is not None:
        weight = layer.weight
        fan = weight[0].numel()
        nn.init.normal_(weight, std=gain / fan**0.5)
        nn.init.constant_(layer.bias, bias)
    return layer


class Plus(nn.Module):
    """A skip connection around a block, which may start at a share of its output."""

    def __init__(self, block: nn.Module, scale: float | None = None) -> None:
        super().__init__()
        self.block = block
        self.scale = None if scale is None else nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return x + (out if self.scale is None else self.scale * out)


def mlp(
    inputs: int = 64, outputs: int = 10, *, depth: int = 4, width: int = 64, act: Activation = nn.ReLU,
    gain: float | None = HE, bias: float = 0.0, head_gain: float | None = 1.0, norm: Norm | None = None,
    skip: bool = False, scale: float | None = None, tail: Activation | None = None, dropout: float = 0.0,
) -> nn.Module:  # fmt: skip
    """``depth`` hidden layers; with ``skip``, each but the first is in a residual block.

    Args:
        inputs, outputs: sizes.
        depth, width: of the hidden layers.
        act: the activation.
        gain, bias: of the hidden layers' initialization.
        head_gain: of the last layer's.
        norm: normalization after each hidden Linear.
        skip, scale: residual blocks, and what their branch is multiplied by at the start.
        tail: what comes after the head.
        dropout: after each hidden layer.
    """
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = scaled_(nn.Linear(width if i else inputs, width), gain, bias)
        parts = [linear, norm(width) if norm else None, act(), nn.Dropout(dropout) if dropout else None]
        block = nn.Sequential(*(part for part in parts if part is not None))
        layers.append(Plus(block, scale) if skip and i else block)
    layers.append(scaled_(nn.Linear(width, outputs), head_gain))
    return nn.Sequential(*layers, *([tail()] if tail else []))


def cnn(
    *, depth: int = 3, channels: int = 8, act: Activation = nn.ReLU, gain: float | None = HE, bias: float = 0.0,
    norm: Norm | None = None, skip: bool = False, outputs: int = 10, tail: Activation | None = None,
) -> nn.Module:  # fmt: skip
    """Convolutions on images of 1 x 8 x 8; the arguments are those of :func:`mlp`."""
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = scaled_(nn.Conv2d(channels if i else 1, channels, 3, padding=1), gain, bias)
        block = nn.Sequential(conv, *([norm(channels)] if norm else []), act())
        layers.append(Plus(block) if skip and i else block)
    layers += [nn.AvgPool2d(2), nn.Flatten(), scaled_(nn.Linear(channels * 16, outputs), 1.0)]
    return nn.Sequential(*layers, *([tail()] if tail else []))


CELLS: dict[str, Callable[..., nn.Module]] = {
    "RNN": nn.RNNCell, "ReLU": partial(nn.RNNCell, nonlinearity="relu"), "LSTM": nn.LSTMCell, "GRU": nn.GRUCell,
}  # fmt: skip
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "RNN": nn.RNN, "ReLU": partial(nn.RNN, nonlinearity="relu"), "LSTM": nn.LSTM, "GRU": nn.GRU,
}  # fmt: skip


class Recurrent(nn.Module):
    """Reads a sequence and answers after the last element; cell by cell, or by torch's fused layer.

    Args:
        inputs, outputs, width: sizes.
        cell: RNN, ReLU (an RNN with ReLUs), LSTM or GRU.
        radius: recurrent weights are orthogonal times this; None leaves torch's own.
        fused: use the layer, which is one call of one module.
        layers: how many on top of each other, of the fused kind.
    """

    def __init__(
        self, inputs: int, outputs: int, *, cell: str = "RNN", width: int = 24, radius: float | None = None,
        fused: bool = False, layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cell = LAYERS[cell](inputs, width, layers, batch_first=True) if fused else CELLS[cell](inputs, width)
        self.head, self.fused = nn.Linear(width, outputs), fused
        if radius is not None:
            for name, param in self.cell.named_parameters():
                if "weight_hh" in name:
                    for part in param.data.split(width):
                        nn.init.orthogonal_(part, gain=radius)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.head(self.cell(x)[0][:, -1])
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Characters(nn.Module):
    """A language model of characters over an embedding: LSTM, GRU, RNN, or a mean over what came before."""

    def __init__(
        self, classes: int, *, cell: str = "LSTM", width: int = 32, tied: bool = False, sparse: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width, sparse=sparse)
        self.body = LAYERS[cell](width, width, batch_first=True)
        self.head = nn.Linear(width, classes)
        if tied:
            nn.init.normal_(self.embed.weight, std=0.1)
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x))[0])


class Block(nn.Module):
    """Attention and feed-forward, normalized before each (pre) or after each sum (post), or not at all."""

    def __init__(
        self, width: int, heads: int, norm: Literal["pre", "post", "none"], skip: bool, dropout: float
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, dropout=dropout)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        make = nn.Identity if norm == "none" else partial(nn.LayerNorm, width)
        self.norm1, self.norm2, self.pre, self.skip = make(), make(), norm == "pre", skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x) if self.pre else x
        x = x * self.skip + self.attention(y, y, y, need_weights=False)[0]
        x = x if self.pre else self.norm1(x)
        x = x * self.skip + self.feed(self.norm2(x) if self.pre else x)
        return x if self.pre else self.norm2(x)


class Transformer(nn.Module):
    """Reads the digits' eight rows as tokens, and answers from their mean."""

    def __init__(
        self, *, layers: int = 2, width: int = 32, heads: int = 2, norm: Literal["pre", "post", "none"] = "pre",
        skip: bool = True, dropout: float = 0.0, inputs: int = 8, tokens: int = 8, outputs: int = 10, gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads, norm, skip, dropout) for _ in range(layers)))
        self.last = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(width, outputs)
        with torch.no_grad():
            for param in self.blocks.parameters():
                param.mul_(gain if param.dim() > 1 else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.embed(x) + self.place)).mean(1))
