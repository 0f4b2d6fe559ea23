"""Healthy programs that many families start from."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from networks import Characters, Recurrent, Transformer, cnn, mlp
from program import Batch, Program, adam, r_squared, sgd, squared_error
from sources import TEXT_CLASSES, digits, recall, regression, table, text
from torch import Tensor, nn

pixels = partial(digits, (1, 8, 8))
rows = partial(digits, (8, 8))


def next_character(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(network(batch[0]).flatten(0, 1), batch[1].flatten())


@torch.no_grad()
def nearest_mean(network: nn.Module, batch: Batch) -> float:
    """Accuracy of naming the class whose mean code is nearest, on the second half of the test."""
    code, y = network(batch[0]).nan_to_num(), batch[1]
    cut = len(y) // 2
    means = torch.stack([code[:cut][y[:cut] == c].mean(0) for c in range(10)])
    return float((torch.cdist(code[cut:], means).argmin(1) == y[cut:]).float().mean())


def on_digits(lr: float = 0.05, steps: int = 150, **network: Any) -> Program:
    """An MLP on digits under SGD."""
    return Program(partial(mlp, **network), digits, optimizer=sgd(lr), steps=steps)


def on_digits_adam(lr: float = 1e-3, steps: int = 150, **network: Any) -> Program:
    return Program(partial(mlp, **network), digits, optimizer=adam(lr), steps=steps)


def on_pixels(lr: float = 0.05, steps: int = 120, **network: Any) -> Program:
    """A CNN on digits under SGD with momentum."""
    return Program(partial(cnn, **network), pixels, optimizer=sgd(lr, momentum=0.9), steps=steps)


def on_rows(lr: float = 3e-3, steps: int = 120, **network: Any) -> Program:
    """A transformer on the digits' rows under Adam."""
    return Program(partial(Transformer, **network), rows, optimizer=adam(lr), steps=steps)


def on_recall(length: int, lr: float = 3e-3, steps: int = 150, **network: Any) -> Program:
    """A recurrent network that has to remember the first element."""
    return Program(partial(Recurrent, 4, 4, **network), partial(recall, length), optimizer=adam(lr), steps=steps)


def on_text(lr: float = 1e-2, steps: int = 120, **network: Any) -> Program:
    """A language model of characters."""
    return Program(partial(Characters, TEXT_CLASSES, **network), text, next_character, optimizer=adam(lr), steps=steps)


def on_numbers(lr: float = 0.05, steps: int = 150, **network: Any) -> Program:
    """A regression of ten inputs under SGD."""
    made = partial(mlp, 10, 1, depth=2, **network)
    return Program(made, regression, squared_error, r_squared, sgd(lr), steps)


def on_table(name: str, lr: float = 0.05, steps: int = 150, **network: Any) -> Program:
    """An MLP on a table with classes."""
    inputs, outputs = {"wine": (13, 3), "breast_cancer": (30, 2)}[name]
    made = partial(mlp, inputs, outputs, depth=2, width=32, **network)
    return Program(made, partial(table, name), optimizer=sgd(lr), steps=steps)
