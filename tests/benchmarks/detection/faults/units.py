"""Units that pass no gradient: dead ReLUs, and heads that can't learn from any input."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from bases import on_digits, on_digits_adam, on_numbers, on_pixels
from networks import cnn, mlp
from program import Batch, Case, Program, adam, pair, sgd, squared_error
from sources import odd_digits
from torch import Tensor, nn

DEAD = ("dead ReLU",)
KILLED = ("dead ReLU", "learning rate too high")  # a rate too high is how they died
HEAD = ("zero-gradient head",)


def dead() -> list[Case]:
    make = partial(pair, "dead ReLU", causes=DEAD, from_start=True)
    return [
        make("mlp-3 bias", healthy=on_digits(depth=3), network=partial(mlp, depth=3, bias=-6.0)),
        make("mlp-5 bias adam", healthy=on_digits_adam(depth=5), network=partial(mlp, depth=5, bias=-4.0)),
        make("mlp-2 wide bias", healthy=on_digits(depth=2, width=128),
             network=partial(mlp, depth=2, width=128, bias=-10.0)),
        make("cnn-3 bias", healthy=on_pixels(depth=3), network=partial(cnn, depth=3, bias=-5.0)),
        make("regression bias", healthy=on_numbers(), network=partial(mlp, 10, 1, depth=2, bias=-8.0)),
    ]  # fmt: skip


def killed() -> list[Case]:
    make = partial(pair, "ReLU killed by the rate", causes=KILLED)
    momentum = sgd(0.7, momentum=0.9)
    return [
        make("mlp-3", healthy=on_digits(depth=3), optimizer=sgd(1.5)),
        make("mlp-4 momentum", healthy=on_digits(depth=4), optimizer=momentum),
        make("cnn-4", healthy=on_pixels(depth=4, lr=0.02), optimizer=momentum),
        make("mlp-4 adam", healthy=on_digits_adam(depth=4), optimizer=adam(0.1)),
    ]


def right_side(network: nn.Module, batch: Batch) -> float:
    """Share of the answers on the right side of a half."""
    with torch.no_grad():
        return float(((network(batch[0]) > 0.5) == (batch[1] > 0.5)).float().mean())


def binary_cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.binary_cross_entropy(network(batch[0]), batch[1])


softmax = partial(nn.Softmax, dim=1)


def head() -> list[Case]:
    make = partial(pair, "zero-gradient head", causes=HEAD, from_start=True)
    odd = partial(mlp, 64, 1, depth=2)
    one = Program(partial(odd, tail=nn.Sigmoid), odd_digits, binary_cross_entropy, right_side, sgd(0.1))
    return [
        make("softmax of one, cross-entropy", healthy=one, network=partial(odd, tail=softmax)),
        make("softmax of one, squares", healthy=replace(one, objective=squared_error, optimizer=adam(1e-3)),
             network=partial(odd, tail=softmax)),
        make("softmax of one, deep", healthy=replace(one, network=partial(odd, depth=5, tail=nn.Sigmoid)),
             network=partial(odd, depth=5, tail=softmax)),
        make("softmax before cross-entropy", healthy=on_digits(depth=3), network=partial(mlp, depth=3, tail=softmax)),
        make("softmax before cross-entropy, cnn", healthy=on_pixels(steps=60), network=partial(cnn, tail=softmax)),
        make("step function", healthy=one, network=partial(odd, tail=Step)),
        make("relu of negatives", healthy=on_numbers(),
             causes=("zero-gradient head", "dead ReLU"), network=partial(mlp, 10, 1, depth=2, tail=Negative)),
        make("all weights zero", healthy=on_digits(depth=3), causes=("zero-gradient head", "initialization too small"),
             network=partial(mlp, depth=3, gain=0.0, head_gain=0.0)),
    ]  # fmt: skip


class Step(nn.Module):
    """Zero or one, with no slope anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.sign(x) + 1) / 2


class Negative(nn.Module):
    """A ReLU that is off for nearly all inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - 10.0)


CASES = [*dead(), *killed(), *head()]
