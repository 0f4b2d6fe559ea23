"""For a project's own tests: a few steps of training, and an error that says what is wrong with the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.runs import Run, train_in_a_loop, train_with_a_trainer


def assert_healthy_gradients(
    module: nn.Module,
    data: Any,
    steps: int = 20,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Train a copy of a module for a few steps on a CPU, and raise where its gradients are not healthy.

    The module, the random numbers and the folder stay as they are. Twenty steps are what the most patient detector
    needs twice; with fewer, a trouble that passes is taken for one that lasts.

    Args:
        module: a LightningModule, trained as it trains itself, or any module, with ``loss``.
        data: a LightningDataModule, a DataLoader, or a batch that every step gets; None where a LightningModule has
            loaders of its own. With ``loss`` a batch is (inputs, targets).
        steps: optimizer steps.
        loss: for a plain module: takes its output and the targets.
        optimizer: for a plain module: makes one of the parameters. None takes SGD with a learning rate of 0.01.
        options: for a LightningModule: what its Trainer has been given (``gradient_clip_val``, ``precision``, ...).

    Returns:
        The healthy run, whose ``history`` holds a Snapshot of each step.

    Raises:
        AssertionError: something was found, the training crashed, or made no step. The message has the layers, the
            causes and what to do.
        TypeError: when a plain module comes without a loss, or a module can't be copied.
        ValueError: when ``steps`` is no whole number of at least 1.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> run = assert_healthy_gradients(model, (torch.randn(32, 4), torch.randn(32, 1)), loss=nn.MSELoss())
        >>> run.steps
        20
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    _require_steps(steps)
    run = _run(module, data, steps, loss, optimizer, options)
    if not run.is_healthy:
        raise AssertionError(str(run)) from run.error
    return run


def _run(module: nn.Module, data: Any, steps: int, loss: Any, optimizer: Any, options: Any) -> Run:
    if loss is not None:
        return train_in_a_loop(module, data, loss, steps, optimizer=optimizer)
    if not isinstance(module, LightningModule):
        raise TypeError(
            f"{type(module).__name__} is no lightning.pytorch.LightningModule; expected one, or a loss function: "
            f"assert_healthy_gradients(module, (inputs, targets), loss=torch.nn.functional.cross_entropy)"
        )
    return train_with_a_trainer(module, data, steps, options=options)


def _require_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected a whole number of at least 1")
