"""Faults of the network before the first step: weights, activations, depth without help."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bases import on_digits, on_digits_adam, on_numbers, on_pixels, on_rows
from networks import XAVIER, Transformer, cnn, mlp
from program import Case, pair, sgd
from torch import nn

SATURATING = ("saturating activation",)
SMALL, LARGE = ("initialization too small",), ("initialization too large",)
# Tanh units that start in their flat part do so because of the weights: either name is right.
FLAT = ("initialization too large", "saturating activation")
# Torch's own weights shrink the signal of a plain ReLU network by 0.41 a layer, which a norm or skip makes good.
PLAIN = ("missing normalization or skip", "initialization too small")


def small() -> list[Case]:
    make = partial(pair, "init too small", from_start=True)
    return [
        make("mlp-6 sgd", SMALL, on_digits(depth=6), network=partial(mlp, depth=6, gain=0.3)),
        make("mlp-8 adam", SMALL, on_digits_adam(depth=8), network=partial(mlp, depth=8, gain=0.1)),
        make("mlp-4 sgd", SMALL, on_digits(depth=4), network=partial(mlp, depth=4, gain=0.05)),
        make("cnn-5", SMALL, on_pixels(depth=5), network=partial(cnn, depth=5, gain=0.15)),
        make("tanh-8", SMALL, on_digits(depth=8, act=nn.Tanh, gain=XAVIER),
             network=partial(mlp, depth=8, act=nn.Tanh, gain=0.3)),
        make("selu-10", SMALL, on_digits(depth=10, act=nn.SELU, gain=XAVIER, lr=0.02),
             network=partial(mlp, depth=10, act=nn.SELU, gain=0.2)),
        make("regression-5", SMALL, on_numbers(), network=partial(mlp, 10, 1, depth=5, gain=0.1)),
    ]  # fmt: skip


def large() -> list[Case]:
    make = partial(pair, "init too large", from_start=True)
    return [
        make("mlp-6 sgd", LARGE, on_digits(depth=6), network=partial(mlp, depth=6, gain=4.0)),
        make("mlp-8 adam", LARGE, on_digits_adam(depth=8), network=partial(mlp, depth=8, gain=6.0)),
        make("mlp-10 sgd", LARGE, on_digits(depth=10, lr=0.02), network=partial(mlp, depth=10, gain=2.5)),
        make("cnn-5", LARGE, on_pixels(depth=5), network=partial(cnn, depth=5, gain=6.0)),
        make("tanh-6", FLAT, on_digits(depth=6, act=nn.Tanh, gain=XAVIER),
             network=partial(mlp, depth=6, act=nn.Tanh, gain=10.0)),
        make("tanh-3 adam", FLAT, on_digits_adam(depth=3, act=nn.Tanh, gain=XAVIER),
             network=partial(mlp, depth=3, act=nn.Tanh, gain=25.0)),
        make("selu-6", LARGE, on_digits(depth=6, act=nn.SELU, gain=XAVIER, lr=0.02),
             network=partial(mlp, depth=6, act=nn.SELU, gain=5.0)),
    ]  # fmt: skip


def saturating() -> list[Case]:
    make = partial(pair, "saturating depth", from_start=True)
    sigmoid = partial(mlp, act=nn.Sigmoid)
    return [
        make("sigmoid-6 sgd", SATURATING, on_digits(depth=6), network=partial(sigmoid, depth=6)),
        make("sigmoid-10 sgd", SATURATING, on_digits(depth=10, lr=0.02), network=partial(sigmoid, depth=10)),
        make("sigmoid-8 adam", SATURATING, on_digits_adam(depth=8), network=partial(sigmoid, depth=8)),
        make("sigmoid-5 momentum", SATURATING, replace(on_digits(depth=5), optimizer=sgd(0.02, momentum=0.9)),
             network=partial(sigmoid, depth=5)),
        make("hardsigmoid-6", SATURATING, on_digits(depth=6), network=partial(mlp, depth=6, act=nn.Hardsigmoid)),
        make("cnn sigmoid-5", SATURATING, on_pixels(depth=5), network=partial(cnn, depth=5, act=nn.Sigmoid)),
    ]  # fmt: skip


def plain() -> list[Case]:
    make = partial(pair, "missing normalization or skip", from_start=True)
    norm, torchs = {"norm": nn.BatchNorm1d}, {"gain": None, "head_gain": None}
    return [
        make("mlp-10 batch norm", PLAIN, on_digits(depth=10, **norm, **torchs),
             network=partial(mlp, depth=10, **torchs)),
        make("mlp-16 skip", PLAIN, on_digits(depth=16, skip=True, **torchs, lr=0.02),
             network=partial(mlp, depth=16, **torchs)),
        make("mlp-12 layer norm", PLAIN, on_digits(depth=12, norm=nn.LayerNorm, **torchs),
             network=partial(mlp, depth=12, **torchs)),
        make("mlp-14 adam", PLAIN, on_digits_adam(depth=14, **norm, **torchs),
             network=partial(mlp, depth=14, **torchs)),
        make("cnn-8 batch norm", PLAIN, on_pixels(depth=8, norm=nn.BatchNorm2d, gain=None),
             network=partial(cnn, depth=8, gain=None)),
        make("cnn-12 skip", PLAIN, on_pixels(depth=12, skip=True, gain=None, lr=0.01),
             network=partial(cnn, depth=12, gain=None)),
        make("transformer-6 skip", PLAIN, on_rows(layers=6),
             network=partial(Transformer, layers=6, norm="none", skip=False)),
    ]  # fmt: skip


CASES = [*small(), *large(), *saturating(), *plain()]
