"""Reading and changing what ``configure_optimizers`` returns, in all the forms that Lightning allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import Optimizer

from gradwatch.torch_internals import chained_schedulers


def optimizers_in(configured: Any) -> list[Optimizer]:
    """Return the optimizers, in order.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> schedule = torch.optim.lr_scheduler.StepLR(sgd, 10)
        >>> forms = sgd, [sgd], ([sgd], [schedule]), {"optimizer": sgd, "lr_scheduler": schedule}, [{"optimizer": sgd}]
        >>> [len(optimizers_in(form)) for form in (*forms, None)]
        [1, 1, 1, 1, 1, 0]
    """
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, dict):
        return optimizers_in(configured.get("optimizer"))
    if isinstance(configured, (list, tuple)):
        return [optimizer for part in configured for optimizer in optimizers_in(part)]
    return []


def schedulers_in(configured: Any) -> Iterator[Any]:
    """Yield the schedulers, each followed by those that it chains."""
    if isinstance(configured, dict):
        for name in ("lr_scheduler", "scheduler"):
            yield from schedulers_in(configured.get(name))
    elif isinstance(configured, (list, tuple)):
        for part in configured:
            yield from schedulers_in(part)
    elif hasattr(configured, "optimizer") and hasattr(configured, "step"):
        yield configured
        yield from schedulers_in(chained_schedulers(configured))


def exchange(configured: Any, change: Callable[[Optimizer], Optimizer]) -> Any:
    """Return the same form with other optimizers, which the schedulers then drive.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> form = [sgd], [torch.optim.lr_scheduler.StepLR(sgd, 10)]
        >>> optimizers, schedulers = exchange(form, lambda old: torch.optim.Adam(old.param_groups, lr=0.1))
        >>> schedulers[0].optimizer is optimizers[0]
        True
    """
    pairs = [(old, change(old)) for old in optimizers_in(configured)]
    for scheduler in schedulers_in(configured):
        scheduler.optimizer = next((new for old, new in pairs if old is scheduler.optimizer), scheduler.optimizer)
    return _with(configured, pairs)


def _with(configured: Any, pairs: list[tuple[Optimizer, Optimizer]]) -> Any:
    if isinstance(configured, Optimizer):
        return next(new for old, new in pairs if old is configured)
    if isinstance(configured, dict) and "optimizer" in configured:
        return {**configured, "optimizer": _with(configured["optimizer"], pairs)}
    if isinstance(configured, (list, tuple)):
        return type(configured)(_with(part, pairs) for part in configured)
    return configured


_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "eta_min")


def scale_rates(configured: Any, factor: float) -> None:
    """Multiply by a factor the learning rates of the optimizers, and those that schedulers compute theirs from.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
        >>> schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
        >>> scale_rates(([sgd], [schedule]), 0.1)
        >>> sgd.step(), schedule.step(), schedule.get_last_lr()
        (None, None, [0.05])
    """
    for optimizer in optimizers_in(configured):
        for group in optimizer.param_groups:
            group.update({name: group[name] * factor for name in _GROUP_RATES if name in group})
    for scheduler in schedulers_in(configured):
        for name in _SCHEDULER_RATES:
            value = getattr(scheduler, name, None)
            if isinstance(value, list):
                setattr(scheduler, name, [rate * factor for rate in value])
            elif isinstance(value, (int, float)):
                setattr(scheduler, name, value * factor)
