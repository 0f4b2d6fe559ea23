"""Small seeded networks and trainings, a fraction of a second each."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from gradwatch import Watcher, watch

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(1))


def classify(model: nn.Module, step: int) -> Tensor:
    """Cross-entropy of the model on noise."""
    return nn.functional.cross_entropy(model(X), Y)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor] = classify,
    *,
    steps: int = 30,
    optimizer: type[Optimizer] = SGD,
    lr: float = 1e-2,
    **options: object,
) -> Watcher:
    """Train while watching; findings are collected, not announced."""
    torch.manual_seed(0)
    chosen = optimizer([param for param in model.parameters() if param.requires_grad], lr=lr)
    with watch(model, **{"every_n_steps": 1, "on_finding": lambda finding: None, **options}) as watcher:
        for step in range(steps):
            chosen.zero_grad()
            value = loss(model, step)
            value.backward()
            watcher.step(chosen, value)
    return watcher


def he(weight: Tensor) -> Tensor:
    """The initialization that suits ReLU."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def mlp(
    widths: Sequence[int], activation: type[nn.Module], init: Callable[[Tensor], Tensor] | None = None
) -> nn.Module:
    """Linear layers with an activation between them, biases 0 where an ``init`` is given."""
    torch.manual_seed(0)
    linears = [nn.Linear(a, b) for a, b in pairwise(widths)]
    for linear in linears if init else []:
        init(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*[module for linear in linears for module in (linear, activation())][:-1])


def kinds(watcher: Watcher) -> list[str]:
    """The kinds of findings, in the order in which they opened."""
    return [finding.kind for finding in watcher.findings]
