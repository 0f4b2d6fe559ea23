"""What may look on at a short training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradwatch.pipeline.watcher import Watcher
from gradwatch.short_runs.run import Run
from gradwatch.short_runs.sandbox import aside, copied, ignore, within


class Observer(Protocol):
    """Looks at the copy that is trained, never at the original."""

    def listen(self, module: nn.Module) -> None:
        """Once, before the first step."""

    def before_backward(self, loss: Tensor) -> None:
        """With each loss."""

    def after_backward(self, module: nn.Module) -> None:
        """With the gradients of each step."""


class Nobody:
    """Looks at nothing.

    Example:
        >>> Nobody().listen(nn.Linear(1, 1))
    """

    def listen(self, module: nn.Module) -> None:
        """Nothing."""

    def before_backward(self, loss: Tensor) -> None:
        """Nothing."""

    def after_backward(self, module: nn.Module) -> None:
        """Nothing."""


Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
# Steps small enough to leave the initialization as it is: it is the gradients that are looked at.
_SGD: MakeOptimizer = partial(torch.optim.SGD, lr=1e-2)


def train_in_a_loop(
    module: nn.Module,
    data: Any,
    loss: Loss,
    steps: int = 20,
    *,
    optimizer: MakeOptimizer | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train a copy of a plain module for a few steps, every one of them measured.

    Args:
        module: stays as it is.
        data: a batch (inputs, targets), which every step gets, or a DataLoader of such.
        loss: takes the module's output and the targets.
        steps: how many.
        optimizer: makes one of the parameters; None takes SGD with a learning rate of 0.01.
        observer: looks on.

    Raises:
        TypeError: when the module can't be copied.

    Example:
        >>> run = train_in_a_loop(nn.Linear(2, 1), (torch.ones(8, 2), torch.ones(8, 1)), nn.MSELoss(), steps=3)
        >>> run.steps, run.is_healthy
        (3, True)
    """
    error = None
    with aside():
        trained = copied(module)
        trained.train()
        options: dict[str, Any] = {"every_n_steps": 1, "history_size": max(steps, 2)}
        watcher = Watcher(trained, detectors=within(steps), on_finding=ignore, **options)
        try:
            with watcher:
                losses = _losses(trained, islice(batches(data), steps), loss)
                _train(watcher, trained, losses, optimizer or _SGD, observer or Nobody())
        except Exception as raised:  # a training that crashes is a result too
            error = raised
        found = tuple(watcher.findings), tuple(watcher.diagnosis())
    return Run(type(module).__name__, tuple(watcher.history), *found, error)


def _losses(module: nn.Module, batches: Iterable[Any], loss: Loss) -> Iterator[Tensor]:
    for inputs, targets in batches:
        module.zero_grad()
        yield loss(call(module, inputs), targets)


def _train(
    watcher: Watcher, module: nn.Module, losses: Iterable[Tensor], make_optimizer: MakeOptimizer, observer: Observer
) -> None:
    optimizer = make_optimizer(param for param in module.parameters() if param.requires_grad)
    observer.listen(module)
    for loss in losses:
        observer.before_backward(loss)
        torch.autograd.backward(loss)
        observer.after_backward(module)
        watcher.step(optimizer, loss.detach())


def call(module: nn.Module, inputs: Any) -> Any:
    """The module's output for inputs that are one tensor, several in a tuple, or named in a mapping.

    Example:
        >>> call(nn.Linear(2, 1), torch.ones(4, 2)).shape
        torch.Size([4, 1])
    """
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def batches(data: Any) -> Iterator[Any]:
    """The batches of a DataLoader, again and again, or copies of the one batch that was given.

    Example:
        >>> list(islice(batches("one batch"), 2))
        ['one batch', 'one batch']
    """
    while True:
        count = 0
        for batch in data if isinstance(data, DataLoader) else [deepcopy(data)]:
            count += 1
            yield batch
        if not count:
            return
