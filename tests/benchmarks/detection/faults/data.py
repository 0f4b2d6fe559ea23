"""Faults of the data: its scale, or one of its batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from bases import on_digits, on_digits_adam, on_numbers, on_pixels, on_recall, on_rows, on_table
from networks import Recurrent, mlp
from program import Batch, Case, Program, adam, pair, r_squared, sgd, squared_error
from sources import digits, regression, sums, table
from torch import nn

INPUT, TARGET, BATCH = ("unscaled input",), ("unscaled target",), ("outlier batch",)


def on_diabetes() -> Program:
    made = partial(mlp, 10, 1, depth=2, width=32)
    return Program(made, partial(regression, "diabetes"), squared_error, r_squared, sgd(0.02))


def unscaled_input() -> list[Case]:
    make = partial(pair, "unscaled input", causes=INPUT, from_start=True)
    return [
        make("digits x 100", healthy=on_digits(), data=partial(digits, scale=100.0)),
        make("digits + 100", healthy=on_digits(), data=partial(digits, shift=100.0)),
        make("digits x 1000 tanh", healthy=on_digits(act=nn.Tanh, gain=1.0), data=partial(digits, scale=1000.0)),
        make("images to 255", healthy=on_pixels(), data=partial(digits, (1, 8, 8), scale=70.0, shift=60.0)),
        make("wine raw", healthy=on_table("wine"), data=partial(table, "wine", raw=True)),
        make("breast cancer raw", healthy=on_table("breast_cancer"), data=partial(table, "breast_cancer", raw=True)),
        make("diabetes raw", healthy=on_diabetes(), data=partial(regression, "diabetes", raw=True)),
        make("digits / 10000 adam", healthy=on_digits_adam(), data=partial(digits, scale=1e-4)),
    ]


def unscaled_target() -> list[Case]:
    make = partial(pair, "unscaled target", causes=TARGET, from_start=True)
    by_adam = replace(on_numbers(), optimizer=adam(3e-3))
    sequences = Program(
        partial(Recurrent, 2, 1, cell="GRU"), partial(sums, 8), squared_error, r_squared, adam(1e-2), steps=100
    )
    return [
        make("x 100 sgd", healthy=on_numbers(), data=partial(regression, scale=100.0)),
        make("x 10000 sgd", healthy=on_numbers(), data=partial(regression, scale=1e4)),
        make("x 1000 adam", healthy=by_adam, data=partial(regression, scale=1e3)),
        make("+ 1000 adam", healthy=by_adam, data=partial(regression, shift=1e3)),
        make("diabetes raw", healthy=on_diabetes(), data=partial(regression, "diabetes", scale=77.0, shift=152.0)),
        make("sequences x 1000", healthy=sequences, data=partial(sums, 8, factor=1000.0)),
    ]


def spoiled(at: tuple[int, ...], x_factor: float, y_factor: float, step: int, batch: Batch) -> Batch:
    """Multiply some samples of the batches of some steps."""
    if step not in at:
        return batch
    x, y = batch[0].clone(), batch[1].clone()
    x[:4] *= x_factor
    if y.is_floating_point():
        y[:4] *= y_factor
    return x, y


def outliers() -> list[Case]:
    make = partial(pair, "outlier batch", causes=BATCH)

    def at(*steps: int, x: float = 1.0, y: float = 1.0) -> partial[Batch]:
        return partial(spoiled, steps, x, y)

    return [
        make("mlp late", healthy=on_digits(), spoil=at(120, x=1e3)),
        make("mlp twice", healthy=on_digits(depth=3), spoil=at(60, 130, x=300.0)),
        make("cnn", healthy=on_pixels(), spoil=at(100, x=1e3)),
        make("target", healthy=on_numbers(), spoil=at(110, y=1e4)),
        make("target, momentum", healthy=replace(on_numbers(), optimizer=sgd(0.02, momentum=0.9)),
             spoil=at(90, 130, y=1e3)),
        make("diabetes", healthy=on_diabetes(), spoil=at(100, x=500.0, y=500.0)),
        make("friedman inputs", healthy=on_numbers(), spoil=at(100, x=100.0)),
        make("every tenth target", healthy=on_numbers(lr=0.02), spoil=at(*range(10, 150, 10), y=100.0)),
        make("mlp adam", healthy=on_digits_adam(), spoil=at(140, 145, x=1e4)),
        make("tanh", healthy=on_digits(act=nn.Tanh, gain=1.0), spoil=at(135, x=1e4)),
    ]  # fmt: skip


def not_a_number() -> list[Case]:
    make = partial(pair, "NaN batch", causes=BATCH)

    def at(*steps: int, value: float = torch.nan) -> partial[Batch]:
        return partial(spoiled, steps, value, value)

    return [
        make("mlp", healthy=on_digits(), spoil=at(70)),
        make("mlp adam early", healthy=on_digits_adam(), spoil=at(3)),
        make("cnn infinite", healthy=on_pixels(), spoil=at(50, value=torch.inf)),
        make("transformer", healthy=on_rows(steps=80), spoil=at(33)),
        make("regression", healthy=on_numbers(), spoil=at(99)),
        make("gru", healthy=on_recall(8, lr=1e-2, cell="GRU"), spoil=at(101)),
    ]


CASES = [*unscaled_input(), *unscaled_target(), *outliers(), *not_a_number()]
