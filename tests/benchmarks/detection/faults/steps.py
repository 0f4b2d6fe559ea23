"""Faults of the optimizer steps: a rate too high, no warm-up, a clip too low."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from bases import on_digits, on_digits_adam, on_numbers, on_pixels, on_recall, on_rows, on_table, on_text
from program import Case, adam, pair, sgd
from torch import nn

HIGH = ("learning rate too high",)


def high() -> list[Case]:
    make = partial(pair, "learning rate too high", causes=HIGH)
    return [
        make("mlp sgd", healthy=on_digits(), optimizer=sgd(3.0)),
        make("mlp-6 sgd", healthy=on_digits(depth=6), optimizer=sgd(1.0)),
        make("mlp adam", healthy=on_digits_adam(), optimizer=adam(0.3)),
        make("cnn momentum", healthy=on_pixels(), optimizer=sgd(2.0, momentum=0.9)),
        make("cnn adam", healthy=replace(on_pixels(), optimizer=adam(3e-3)), optimizer=adam(0.5)),
        make("regression sgd", healthy=on_numbers(), optimizer=sgd(1.5)),
        make("regression momentum", healthy=on_numbers(lr=0.02), optimizer=sgd(0.4, momentum=0.95)),
        make("lstm text", healthy=on_text(), optimizer=adam(0.5)),
        make("gru recall", healthy=on_recall(12, lr=1e-2, cell="GRU"), optimizer=adam(1.0)),
        make("transformer", healthy=on_rows(), optimizer=adam(0.1)),
        make("tanh sgd", healthy=on_digits(act=nn.Tanh, gain=1.0), optimizer=sgd(5.0)),
        make("wine sgd", healthy=on_table("wine"), optimizer=sgd(5.0)),
    ]


def no_warm_up() -> list[Case]:
    causes = ("missing warm-up", "learning rate too high")

    def ramp(steps: int, step: int) -> float:
        return min(1.0, (step + 1) / steps)

    def warm(lr: float, layers: int, over: int, **network: Any) -> Case:
        program = replace(on_rows(lr, 150, layers=layers, **network), schedule=partial(ramp, over))
        name = f"post-norm-{layers} adam {lr}" + (f" width {network['width']}" if "width" in network else "")
        return pair("transformer without warm-up", name, causes, program, schedule=None)

    return [
        warm(1e-2, 4, 75, norm="post"),
        warm(2e-2, 2, 75, norm="post"),
        warm(5e-3, 6, 75, norm="post"),
        warm(1.5e-2, 3, 75, norm="post", width=24),
        warm(2e-2, 4, 100, norm="post", width=16),
        warm(1e-2, 5, 100, norm="post", width=24),
    ]


def post_norm() -> list[Case]:
    causes = ("missing normalization or skip", "missing warm-up", "learning rate too high")
    make = partial(pair, "post-norm deep transformer", causes=causes)

    def deep(layers: int, lr: float, **network: int) -> Case:
        healthy = on_rows(lr, 100, layers=layers, **network)
        kwargs = {"layers": layers, **network, "norm": "post"}
        return make(f"{layers} layers {lr}", healthy=healthy, network=partial(healthy.network.func, **kwargs))

    return [deep(10, 3e-3, width=16), deep(6, 1e-2, width=24), deep(8, 5e-3, width=32), deep(4, 2e-2, width=16)]


def clipped() -> list[Case]:
    make = partial(pair, "clipping too hard", causes=("clipping too hard",))
    return [
        make("mlp norm", healthy=on_digits(), options={"gradient_clip_val": 1e-3}),
        make("mlp value", healthy=on_digits(),
             options={"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"}),
        make("cnn norm", healthy=on_pixels(), options={"gradient_clip_val": 1e-3}),
        make("regression norm", healthy=on_numbers(), options={"gradient_clip_val": 1e-2}),
        make("wine norm", healthy=on_table("wine"), options={"gradient_clip_val": 3e-3}),
        make("rnn norm", healthy=replace(on_recall(10), optimizer=sgd(0.3)), options={"gradient_clip_val": 1e-3}),
    ]  # fmt: skip


CASES = [*high(), *no_warm_up(), *post_norm(), *clipped()]
