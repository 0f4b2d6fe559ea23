"""A check for a project's own tests: a few steps of training, and an error that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.checks import require_whole
from gradwatch.preflight.verdict import check_training
from gradwatch.short_runs.run import Run


def assert_healthy_gradients(
    module: nn.Module,
    data: Any,
    steps: int = 20,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    options: Mapping[str, Any] | None = None,
    allow: Collection[str] = (),
) -> Run:
    """Train a copy of a module for a few steps on a CPU, and raise where its gradients are not healthy.

    The module, the random numbers and the folder are not changed. The steps are the first of the run: schedules keep
    the length that ``options`` give it. The most patient detector needs twenty steps; with fewer, a passing trouble
    counts as a lasting one.

    Args:
        module: a LightningModule, trained as it trains itself, or any module, with ``loss``.
        data: a LightningDataModule, a DataLoader, or a batch that every step gets; None where a LightningModule has
            loaders of its own. With ``loss`` a batch is (inputs, targets).
        steps: optimizer steps.
        loss: for a plain module: takes its output and the targets.
        optimizer: for a plain module: makes one of the parameters. None takes SGD with a learning rate of 0.01.
        options: for a LightningModule: what its Trainer has been given (``gradient_clip_val``, ``precision``, ...).
        allow: causes, or kinds of findings, to ignore, such as ``"unscaled input"``, ``"dead"`` or ``"GW107"``.

    Returns:
        The healthy run, whose ``history`` holds a Snapshot of each step.

    Raises:
        AssertionError: something was found, the training crashed, or made no step. The message has the layers, the
            causes and what to do.
        TypeError: when a plain module comes without a loss, or a module can't be copied.
        ValueError: when ``steps`` is no whole number of at least 1, or ``allow`` has an unknown name.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> run = assert_healthy_gradients(model, (torch.randn(32, 4), torch.randn(32, 1)), loss=nn.MSELoss())
        >>> run.steps
        20
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    require_whole("assert_healthy_gradients", steps=steps)
    settings: dict[str, Any] = {"options": options} if loss is None else {"loss": loss, "optimizer": optimizer}
    run = check_training(module, data, steps=steps, allow=allow, **settings)
    if not run.is_healthy:
        raise AssertionError(str(run)) from run.error
    return run
