"""Healthy programs of common kinds: activations, norms, optimizers, schedules, noise."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from bases import on_digits, on_digits_adam, on_numbers, on_pixels, on_rows, on_table
from networks import XAVIER, mlp
from program import Batch, Case, Program, healthy, sgd
from program import optimizer_of as optimizer
from sources import blobs, digits, noisy_digits, rare_digits
from torch import Tensor, nn


def warm_cosine(step: int, warm: int = 20, whole: int = 150) -> float:
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / (whole - warm))))


def smoothed(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1], label_smoothing=0.1)


def huber(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.huber_loss(network(batch[0]), batch[1])


def activations() -> list[Case]:
    make = partial(healthy, "activation")
    return [
        make("tanh xavier", on_digits(act=nn.Tanh, gain=XAVIER)),
        make("selu", on_digits(depth=6, act=nn.SELU, gain=XAVIER, lr=0.02)),
        make("sigmoid shallow", on_digits_adam(depth=1, act=nn.Sigmoid, lr=1e-2)),
        make("gelu", on_digits_adam(depth=5, act=nn.GELU)),
        make("relu sparse", on_digits_adam(depth=2, width=128, bias=-0.5, lr=3e-3)),
        make("relu6", on_pixels(act=nn.ReLU6)),
    ]


def depth() -> list[Case]:
    make = partial(healthy, "depth")
    return [
        make("narrow tanh", on_digits_adam(depth=10, width=16, act=nn.Tanh, gain=XAVIER)),
        make("deep layer norm", on_digits(depth=12, norm=nn.LayerNorm)),
        make("deep residual", on_digits(depth=12, skip=True, scale=0.3, lr=0.02)),
        make("cnn batch norm", on_pixels(depth=6, norm=nn.BatchNorm2d)),
        make("resnet-like", on_pixels(depth=6, norm=nn.BatchNorm2d, skip=True)),
        make("dropout", on_digits_adam(depth=3, dropout=0.5)),
    ]


def optimizers() -> list[Case]:
    make = partial(healthy, "optimizer")
    by = partial(replace, on_digits())
    return [
        make("momentum", by(optimizer=sgd(0.02, momentum=0.9, nesterov=True))),
        make("rmsprop", by(optimizer=partial(optimizer, torch.optim.RMSprop, lr=1e-3))),
        make("adamw", by(optimizer=partial(optimizer, torch.optim.AdamW, lr=2e-3, weight_decay=0.1))),
        make("adagrad", by(optimizer=partial(optimizer, torch.optim.Adagrad, lr=0.02))),
        make("clipped mildly", by(options={"gradient_clip_val": 1.0})),
        make("accumulated", by(accumulate=4, batch_size=8)),
        make("batch of one", by(batch_size=1, optimizer=sgd(5e-3), steps=300)),
        make("warm-up and cosine", by(schedule=warm_cosine, optimizer=sgd(0.1))),
        make("transformer warm-up", replace(on_rows(), schedule=partial(warm_cosine, whole=120))),
        make("weight decay", by(optimizer=sgd(0.05, weight_decay=5e-3), steps=300)),
    ]


def losses() -> list[Case]:
    make = partial(healthy, "data and loss")
    by = partial(replace, on_digits_adam(depth=2, lr=2e-3))
    return [
        make("label smoothing", by(objective=smoothed)),
        make("noisy labels", by(data=partial(noisy_digits, 0.3))),
        make("class imbalance", by(data=partial(rare_digits, 0.1))),
        make("huber", replace(on_numbers(), objective=huber)),
        make("breast cancer", on_table("breast_cancer")),
        make("wine", on_table("wine")),
        make("blobs", Program(partial(mlp, 12, 4, depth=2, width=32), blobs)),
        make("cnn noisy labels", replace(on_pixels(), data=partial(noisy_digits, 0.2, (1, 8, 8)))),
        make("digits scaled to one", by(data=partial(digits, scale=0.3, shift=0.3))),
    ]


CASES = [*activations(), *depth(), *optimizers(), *losses()]
