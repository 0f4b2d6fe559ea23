"""Parts of a model that get no gradient by mistake."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from bases import on_digits, on_digits_adam, on_pixels, on_recall, on_text
from networks import HE, Characters, scaled_
from program import Case, adam, pair
from sources import TEXT_CLASSES
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

CUT = ("frozen or detached part",)
Mistake = Literal["none", "detach", "no_grad", "frozen", "rounded"]


class TwoParts(nn.Module):
    """An encoder and a head, with a mistake between them."""

    def __init__(self, encoder: nn.Module, head: nn.Module, mistake: Mistake = "none") -> None:
        super().__init__()
        self.encoder, self.head, self.mistake = encoder, head, mistake
        encoder.requires_grad_(mistake != "frozen")

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.mistake != "no_grad" and torch.is_grad_enabled()):
            code = self.encoder(x)
        code = code.detach() if self.mistake == "detach" else code
        return self.head(code.round() if self.mistake == "rounded" else code)


def narrow(mistake: Mistake = "none", depth: int = 2, code: int = 4) -> nn.Module:
    """Digits through a few numbers, which random weights can't choose well."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [scaled_(nn.Linear(64, code if i == depth - 1 else 64), HE), nn.ReLU()]
    head = nn.Sequential(scaled_(nn.Linear(code, 32), HE), nn.ReLU(), nn.Linear(32, 10))
    return TwoParts(nn.Sequential(*layers[:-1]), head, mistake)


def narrow_images(mistake: Mistake = "none") -> nn.Module:
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3), nn.Flatten(), nn.Linear(16, 4))
    head = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 10))
    return TwoParts(encoder, head, mistake)


class Forgetful(nn.Module):
    """A GRU whose state is detached at every call."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.cell, self.head, self.detached = nn.GRUCell(4, 24), nn.Linear(24, 4), detached

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 24)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state.detach() if self.detached else state)
        return self.head(state)


class CutCharacters(Characters):
    """A language model in which only the head learns."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x))[0].detach())


def head_only(network: TwoParts) -> Optimizer:
    """An optimizer of the head, without the encoder."""
    return SGD(network.head.parameters(), lr=0.05)


def cut() -> list[Case]:
    make = partial(pair, "detached or frozen part", causes=CUT, from_start=True)
    digits = replace(on_digits(), network=narrow)
    images = replace(on_pixels(), network=narrow_images, optimizer=adam(5e-3))
    return [
        make("detached code", healthy=digits, network=partial(narrow, "detach")),
        make("encoder without grad", healthy=replace(on_digits_adam(lr=3e-3), network=narrow),
             network=partial(narrow, "no_grad")),
        make("encoder not in the optimizer", healthy=digits, optimizer=head_only),
        make("encoder frozen", healthy=digits, network=partial(narrow, "frozen")),
        make("rounded code", healthy=digits, network=partial(narrow, "rounded")),
        make("detached convolutions", healthy=images, network=partial(narrow_images, "detach")),
        make("detached state", healthy=replace(on_recall(8, lr=1e-2), network=partial(Forgetful, False)),
             network=partial(Forgetful, True)),
        make("text, all but the head", healthy=on_text(), network=partial(CutCharacters, TEXT_CLASSES)),
    ]  # fmt: skip


CASES = cut()
