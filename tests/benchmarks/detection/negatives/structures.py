"""Healthy programs with special structures: sequences, residual branches that start at zero, gates, shared weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from bases import on_digits, on_digits_adam, on_pixels, on_recall, on_rows, on_text, pixels
from networks import Plus, Recurrent, Transformer, cnn, mlp, scaled_
from program import Case, Program, adam, healthy, r_squared, sgd, squared_error
from sources import digits, sums
from torch import Tensor, nn


def sequences() -> list[Case]:
    make = partial(healthy, "sequences")
    mean = Program(partial(Recurrent, 2, 1, cell="GRU"), partial(sums, 12), squared_error, r_squared, adam(1e-2))
    return [
        make("lstm text", on_text()),
        make("gru text", on_text(cell="GRU")),
        make("rnn text", on_text(cell="RNN", lr=5e-3)),
        make("tied weights", on_text(tied=True)),
        make("lstm text clipped", replace(on_text(), options={"gradient_clip_val": 0.5})),
        make("gru recall", on_recall(12, lr=1e-2, cell="GRU")),
        make("lstm recall", on_recall(6, lr=1e-2, cell="LSTM")),
        make("orthogonal rnn", on_recall(15, lr=5e-3, radius=1.0, fused=True)),
        make("stacked gru", on_recall(8, lr=1e-2, cell="GRU", fused=True, layers=2)),
        make("gru mean", replace(mean, steps=100)),
        make("transformer dropout", on_rows(dropout=0.1)),
        make("transformer sgd", replace(on_rows(), optimizer=sgd(0.1, momentum=0.9))),
        make("transformer of four", on_rows(layers=4, width=24, lr=2e-3)),
    ]


class LayerScale(nn.Module):
    """A branch whose channels start at a small factor each."""

    def __init__(self, block: nn.Module, width: int, start: float) -> None:
        super().__init__()
        self.block, self.factor = block, nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.block(x)


def layer_scaled(start: float = 1e-4, depth: int = 6) -> nn.Module:
    blocks = (nn.Sequential(nn.LayerNorm(64), scaled_(nn.Linear(64, 64), 1.4), nn.GELU()) for _ in range(depth))
    return nn.Sequential(*(LayerScale(block, 64, start) for block in blocks), nn.Linear(64, 10))


def zero_last(depth: int = 6) -> nn.Module:
    """Fixup's rule in short: the last layer of each branch starts at zero."""
    blocks = (
        nn.Sequential(scaled_(nn.Linear(64, 64), 1.4), nn.ReLU(), scaled_(nn.Linear(64, 64), 0.0)) for _ in range(depth)
    )
    return nn.Sequential(*map(Plus, blocks), nn.Linear(64, 10))


def zero_gamma(depth: int = 3) -> nn.Module:
    """A residual CNN whose branches' last batch norm starts at zero."""
    blocks = []
    for _ in range(depth):
        last = nn.BatchNorm2d(8)
        nn.init.zeros_(last.weight)
        convolve = partial(nn.Conv2d, 8, 8, 3, padding=1, bias=False)
        blocks.append(Plus(nn.Sequential(convolve(), nn.BatchNorm2d(8), nn.ReLU(), convolve(), last)))
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *blocks, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def linear(depth: int = 20) -> nn.Module:
    """Deep and linear, with orthogonal weights: gradients keep their size."""
    layers = [nn.Linear(64, 64) for _ in range(depth)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Again(nn.Module):
    """One block, applied several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.LayerNorm(64), scaled_(nn.Linear(64, 64), 1.0), nn.GELU())
        self.head, self.times = nn.Linear(64, 10), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.block(x) / self.times
        return self.head(x)


class Excited(nn.Module):
    """Convolutions whose channels are weighted by a gate with a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        y = y * self.gate(y.mean((2, 3)))[:, :, None, None]
        return self.head(nn.functional.avg_pool2d(y, 2).flatten(1))


def gated() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.GLU(), nn.Linear(64, 128), nn.GLU(), nn.Linear(64, 10))


def weight_normed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(64, 64)), nn.ReLU(), norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 10))


def special() -> list[Case]:
    make = partial(healthy, "structure")
    by = partial(Program, data=digits, optimizer=adam(2e-3))
    return [
        make("rezero", on_digits(depth=10, skip=True, scale=0.0)),
        make("layer scale", by(layer_scaled)),
        make("zero-init residual", by(zero_last)),
        make("zero gamma", Program(zero_gamma, pixels, optimizer=sgd(0.05, momentum=0.9), steps=100)),
        make("orthogonal linear", by(linear, optimizer=sgd(5e-3))),
        make("one block again", by(partial(Again, 6))),
        make("squeeze and excite", Program(Excited, pixels, optimizer=adam(5e-3))),
        make("gated linear units", by(gated)),
        make("weight norm", by(weight_normed)),
        make("group norm", on_pixels(norm=partial(nn.GroupNorm, 2))),
        make("prelu", on_digits_adam(act=nn.PReLU)),
        make("leaky relu", on_pixels(act=partial(nn.LeakyReLU, 0.1))),
        make("funnel", by(funnel)),
        make("narrow relu with norms", on_digits_adam(depth=8, width=12, norm=nn.LayerNorm, lr=5e-3)),
        make("pre-norm transformer of six", Program(partial(Transformer, layers=6, width=16), partial(digits, (8, 8)),
             optimizer=adam(3e-3), steps=80)),
        make("cnn of eight", on_pixels(depth=8, lr=0.01, steps=80)),
        make("zero-init head", Program(partial(mlp, depth=3, head_gain=0.0), digits)),
        make("cnn zero-init head", Program(zero_head, pixels, optimizer=adam(3e-3), steps=80)),
    ]  # fmt: skip


def funnel() -> nn.Module:
    sizes = (64, 128, 32, 16, 12)
    layers = [part for a, b in pairwise(sizes) for part in (scaled_(nn.Linear(a, b), 1.4), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(12, 10))


def zero_head() -> nn.Module:
    network = cnn(depth=2)
    nn.init.zeros_(network[-1].weight)
    return network


CASES = [*sequences(), *special()]
