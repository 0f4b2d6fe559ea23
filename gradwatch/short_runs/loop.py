"""A short training of a plain module, in a loop of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.detectors import Stalled, Unmoved, default_detectors
from gradwatch.pipeline.origin_search import may_be_of_nan
from gradwatch.pipeline.watcher import Watcher
from gradwatch.places import raised_at
from gradwatch.records import Detector, Finding
from gradwatch.short_runs.batches import endless_batches
from gradwatch.short_runs.run import Run
from gradwatch.short_runs.sandbox import copy_without_trainer, isolated


class Observer(Protocol):
    """Looks at the copy that is trained, never at the original."""

    def listen(self, module: nn.Module) -> None:
        """Called once, before the first step."""

    def before_backward(self, loss: Tensor) -> None:
        """Called with each loss."""

    def after_backward(self, module: nn.Module) -> None:
        """Called with the gradients of each step."""


Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
# Steps too small to change the initialization: the gradients are what is looked at.
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
    """Train a copy of a plain module for a few steps, and measure each of them.

    Args:
        module: is not changed.
        data: a batch (inputs, targets), which every step gets, or a DataLoader of such batches.
        loss: takes the module's output and the targets.
        steps: how many optimizer steps.
        optimizer: makes one of the parameters; None takes SGD with a learning rate of 0.01.
        observer: looks at the copy.

    Raises:
        TypeError: when the module can't be copied.

    Example:
        >>> run = train_in_a_loop(nn.Linear(2, 1), (torch.ones(8, 2), torch.ones(8, 1)), nn.MSELoss(), steps=3)
        >>> run.steps, run.is_healthy
        (3, True)
    """
    error = None
    with isolated():
        model = copy_without_trainer(module)
        model.train()
        settings: dict[str, Any] = {"every_n_steps": 1, "history_size": max(steps, 2)}
        watcher = Watcher(model, detectors=detectors_for(steps), on_finding=ignore_finding, **settings)
        try:
            with watcher:
                made = (optimizer or _SGD)(param for param in model.parameters() if param.requires_grad)
                if observer is not None:
                    observer.listen(model)
                for inputs, targets in islice(endless_batches(data), steps):
                    model.zero_grad()
                    again = partial(_loss, loss, model, inputs, targets)
                    with _crash_searched(watcher, model, again):
                        _step(watcher, model, again, made, observer)
        except Exception as raised:  # a training that crashes is a result too
            error = raised
        found = tuple(watcher.findings), tuple(watcher.diagnosis())
    where = "" if error is None else str(raised_at(error, model))
    return Run(type(module).__name__, tuple(watcher.history), *found, error, place=where)


@contextmanager
def _crash_searched(watcher: Watcher, model: nn.Module, again: Callable[[], Tensor]) -> Iterator[None]:
    """Search for NaN behind an error that the body raises."""
    try:
        yield
    except Exception as error:
        if may_be_of_nan(error):
            watcher.seek_nan(lambda: (model, again), crashed=True)
        raise


def _loss(loss: Loss, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
    return loss(call(model, inputs), targets)


def _step(
    watcher: Watcher,
    model: nn.Module,
    again: Callable[[], Tensor],
    optimizer: Optimizer,
    observer: Observer | None,
) -> None:
    loss = again()
    if observer is not None:
        observer.before_backward(loss)
    watcher.expect(loss)
    torch.autograd.backward(loss)
    if observer is not None:
        observer.after_backward(model)
    watcher.step(optimizer, loss.detach(), again=again)


def call(module: nn.Module, inputs: Any) -> Any:
    """Return the module's output for inputs that are one tensor, several in a tuple, or named in a mapping.

    Example:
        >>> call(nn.Linear(2, 1), torch.ones(4, 2)).shape
        torch.Size([4, 1])
    """
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def detectors_for(steps: int) -> list[Detector]:
    """Return the default detectors, with a patience of at most so many steps: a longer one could never be met.

    Example:
        >>> max(getattr(detector, "patience", 1) for detector in detectors_for(5))
        5
    """
    detectors: list[Any] = [*default_detectors()]
    for place, one in enumerate(detectors):
        if isinstance(one, Unmoved):  # its other numbers of steps tell a fault from a warm-up, and stay
            detectors[place] = replace(one, left_out_steps=min(one.left_out_steps, max(steps, 2)))
        if isinstance(one, Stalled):
            detectors[place] = replace(one, steps=min(one.steps, steps))
    return [replace(one, patience=steps) if getattr(one, "patience", 1) > steps else one for one in detectors]


def ignore_finding(_: Finding) -> None:
    """Do nothing when a finding opens: a short run reads the findings at its end."""
