"""Small networks as users write them, with torch's initialization unless the idiom has another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, last: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Linears with an activation between them, and ``last`` after the end."""
    linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
    hidden = [layer for linear in linears[:-1] for layer in (linear, act())]
    return nn.Sequential(*hidden, linears[-1], *([last()] if last else []))


def normed(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), norm(64), nn.ReLU(), nn.Linear(64, 10))


def weight_normed() -> nn.Module:
    layers = [weight_norm(nn.Linear(20, 64)), nn.ReLU(), weight_norm(nn.Linear(64, 64)), nn.ReLU()]
    return nn.Sequential(*layers, weight_norm(nn.Linear(64, 5)))


def bag() -> nn.Module:
    return nn.Sequential(nn.Embedding(1000, 32), nn.Flatten(), mlp(256, 64, 10))


def encoders(width: int, tokens: int, layers: int, feed: int, classes: int) -> nn.Module:
    made = (nn.TransformerEncoderLayer(width, 4, feed, batch_first=True) for _ in range(layers))
    return nn.Sequential(*made, nn.Flatten(), nn.Linear(width * tokens, classes))


class Gpt(nn.Module):
    """A decoder: causal self-attention over tokens; ``std`` draws the weights as GPT-2 does."""

    def __init__(
        self, width: int, layers: int, words: int, std: float | None = None, pre: bool = True, tied: bool = False
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=pre)
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.words.weight
        for module in self.modules() if std else ():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0, std)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.words(x) + self.places(torch.arange(x.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask)
        return self.head(self.norm(hidden))


class Translator(nn.Module):
    """torch's encoder and decoder, with its dropout, between two vocabularies of 40."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, width), nn.Embedding(40, width)
        self.body = nn.Transformer(width, 4, 2, 2, 2 * width, batch_first=True)
        self.head = nn.Linear(width, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.body(self.source(source), self.target(target), tgt_mask=mask))


class Vit(nn.Module):
    """A vision transformer: patches of 4 x 4, a class token, pre-norm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), patches], 1)
        return self.head(self.body(tokens + self.places)[:, 0])
