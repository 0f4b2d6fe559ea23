"""Programs that go wrong: jumps that stay, units that never come back, gradients that explode or fade."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harm.healthy import TRUE, Last, autoencode, classes, first_sign, mean_of, mlp, numbers, scaled, small, wide
from harm.program import Program, adam, sgd
from torch import Tensor, nn
from torch.optim import Optimizer

Fault = Callable[[nn.Module, Optimizer, int], object]


def rate_from(at: int, rate: float) -> Fault:
    """A schedule that sets a rate far too high from a step on."""

    def fault(network: nn.Module, rule: Optimizer, step: int) -> None:
        if step == at:
            for group in rule.param_groups:
                group["lr"] = rate

    return fault


def wreck(at: int, factor: float) -> Fault:
    """A restore of wrong weights: all are multiplied once."""

    def fault(network: nn.Module, rule: Optimizer, step: int) -> None:
        if step == at:
            scaled(network, factor)

    return fault


def other_targets(network: nn.Module, number: int, since: int = 200, factor: float = 30.0, batch: int = 4) -> Tensor:
    """From a step on the targets come in another unit."""
    loss = numbers(network, number, batch)
    if number < since:
        return loss
    return (factor**2) * numbers(lambda x: network(x) / factor, number, batch)  # type: ignore[arg-type]


def raw(network: nn.Module, number: int) -> Tensor:
    """Inputs in the unit that they were measured in."""
    return classes(lambda x: network(300 * x + 1000), number)  # type: ignore[arg-type]


def offset(network: nn.Module, number: int) -> Tensor:
    """Targets far from zero: the bias of the last layer alone takes nearly all of the loss."""
    return numbers(lambda x: network(x) - 10, number, 32)  # type: ignore[arg-type]


def constant(network: nn.Module, loss: Callable[[nn.Module, int], Tensor] = offset) -> float:
    """Share of the variance of the targets that is left: what a constant leaves is no start."""
    return min(sum(float(loss(network, -i)) for i in range(1, 9)) / 8 / float(TRUE[:, 0].square().sum()), 1.0)


def dead(bias: float) -> nn.Sequential:
    network = mlp(8, 64, 64, 4)
    with torch.no_grad():
        network[2].bias.fill_(bias)
    return network


def kill(network: nn.Module, step: int) -> None:
    """A step far too large, taken once: it lowers the biases of the second layer."""
    if step == 200:
        with torch.no_grad():
            network[2].bias -= 50.0  # type: ignore[index,operator,union-attr]


deep_tanh, deep_sigmoid = (partial(mlp, 8, *[32] * 8, 4, act=act) for act in (nn.Tanh, nn.Sigmoid))
HARMFUL: dict[str, Program] = {
    "rate of 30 at step 150": Program(wide, classes, sgd(lr=0.1), 300, rate_from(150, 30.0)),
    "rate of 1 at step 150, Adam": Program(wide, classes, adam(lr=3e-3), 300, rate_from(150, 1.0)),
    "batches of 2, rate of 30 at step 300": Program(
        small, partial(classes, batch=2), sgd(lr=0.05), 500, rate_from(300, 30.0)
    ),
    "batches of 1, rate of 1 at step 300, Adam": Program(
        wide, partial(classes, batch=1), adam(lr=1e-3), 500, rate_from(300, 1.0)
    ),
    "numbers, batches of 2, rate of 0.3 at step 300": Program(
        partial(mlp, 8, 32, 1), partial(numbers, batch=2), adam(lr=3e-3), 450, rate_from(300, 1.0)
    ),
    "wrong weights at step 250": Program(wide, classes, sgd(lr=0.02), 300, wreck(250, 20.0)),
    "wrong weights at step 200, autoencoder": Program(
        partial(mlp, 8, 64, 8), autoencode, sgd(lr=1e-4, momentum=0.9), 260, wreck(200, 30.0)
    ),
    "targets in another unit": Program(partial(mlp, 8, 32, 1), other_targets, adam(lr=3e-3), 300),
    "raw inputs into Tanh": Program(partial(mlp, 8, 64, 4, act=nn.Tanh), raw, sgd(lr=0.03), 200),
    "Tanhs at their bounds, eight deep": Program(lambda: scaled(deep_tanh(), 30.0), classes, sgd(lr=1e-3), 200),
    "Sigmoids, eight deep": Program(deep_sigmoid, classes, sgd(lr=0.1), 200),
    "dead ReLUs": Program(partial(dead, -50.0), classes, sgd(lr=0.1), 200),
    "ReLUs killed by the rate": Program(partial(mlp, 8, 64, 64, 4), classes, sgd(lr=30.0), 200),
    "weights of 6, ten deep": Program(
        lambda: scaled(mlp(8, *[32] * 9, 4), 8.0), classes, sgd(lr=1e-3), 200
    ),
    "weights of 0.05, ten deep": Program(lambda: scaled(mlp(8, *[32] * 9, 4), 0.05), classes, sgd(lr=0.1), 200),
    "RNN over 80 steps, exploding": Program(
        lambda: scaled(Last(nn.RNN, 2, 24, 1), 3.0, "weight_hh"), partial(mean_of, length=80), sgd(lr=0.1), 200
    ),
    "RNN over 80 steps, fading": Program(
        lambda: scaled(Last(nn.RNN, 3, 24, 2), 0.3, "weight_hh"),
        partial(first_sign, batch=16, length=80), adam(lr=1e-3), 200,
    ),
    "dead ReLUs, targets far from zero": Program(
        lambda: nn.Sequential(*dead(-50.0), nn.Linear(4, 1)), offset, sgd(lr=0.02), 200, score=constant
    ),
    "weights of 0.05, ten deep, targets far from zero": Program(
        lambda: scaled(mlp(8, *[32] * 9, 1), 0.05), offset, sgd(lr=0.02), 200, score=constant
    ),
    "ReLUs killed at step 200": Program(
        partial(mlp, 8, 64, 64, 4), classes, sgd(lr=0.1), 500, lambda network, _, step: kill(network, step)
    ),
}  # fmt: skip
