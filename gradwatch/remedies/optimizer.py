"""Remedies that change the optimizer, its learning rate or its schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradwatch.checks import require_number, require_positive, require_whole
from gradwatch.remedies.optimizers_of_module import exchange, optimizers_in, scale_rates
from gradwatch.remedies.remedy import NotApplicable, Remedy, Setup, copy_of
from gradwatch.short_runs.wrap_method import wrap_method


class OptimizerRemedy(Remedy):
    """A remedy that changes the result of the copy's ``configure_optimizers``."""

    def change(self, setup: Setup) -> Setup:
        """Wrap the method."""
        if not setup.trains_itself:
            raise NotApplicable(
                f"{type(setup.module).__name__} does not configure its own training: it has no configure_optimizers. "
                f"In your training loop, write:\n{self.code(setup.module)}"
            )
        wrap_method(setup.module, "configure_optimizers", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the changed optimizers and schedulers."""
        return self.configure(method(*args, **kwargs))

    @abstractmethod
    def configure(self, configured: Any) -> Any:
        """Change a result of ``configure_optimizers``, in any form that Lightning allows."""


@dataclass(frozen=True)
class ChangeOptimizer(OptimizerRemedy):
    """Train with another optimizer. An adaptive one takes steps of useful size even if gradients are small.

    Parameter groups and the ratios of their learning rates are kept; a scheduler continues with the new rate. The old
    optimizer's state, such as its momentum, is lost.

    Args:
        to: class in ``torch.optim``.
        lr: learning rate of the first parameter group.
        weight_decay: weight decay of all groups; None keeps that of each group.

    Raises:
        ValueError: when ``torch.optim`` has no such class, or ``lr`` is not positive.

    Example:
        >>> from torch import nn
        >>> print(ChangeOptimizer().code(nn.Linear(1, 1)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)

    References: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980; Loshchilov and Hutter, 2019,
    https://arxiv.org/abs/1711.05101.
    """

    to: str = "AdamW"
    lr: float = 1e-3
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        made = getattr(torch.optim, self.to, None)
        if not (isinstance(made, type) and issubclass(made, Optimizer)) or made is Optimizer:
            raise ValueError(f"to is {self.to!r}; expected the name of an optimizer in torch.optim, such as 'AdamW'")
        require_positive(self, lr=self.lr)

    def change(self, setup: Setup) -> Setup:
        """Wrap the method, unless the module already uses this optimizer."""
        kinds = {type(optimizer).__name__ for optimizer in optimizers_of(setup.module)}
        if kinds == {self.to}:
            raise NotApplicable(
                f"{type(setup.module).__name__} is already trained with {self.to}; lower its learning rate"
            )
        return super().change(setup)

    def configure(self, configured: Any) -> Any:
        """Replace each optimizer."""
        found = optimizers_in(configured)
        old = float(found[0].param_groups[0]["lr"]) if found else 0.0
        if old > 0:
            scale_rates(configured, self.lr / old)
        return exchange(configured, self._new)

    def _new(self, old: Optimizer) -> Optimizer:
        # A key that is no setting of the old optimizer comes from a scheduler or the user, who reads it again: keep it.
        dropped = {*old.defaults} - {"lr", "weight_decay"}
        groups = [{key: group[key] for key in group if key not in dropped} for group in old.param_groups]
        if self.weight_decay is not None:
            groups = [{**group, "weight_decay": self.weight_decay} for group in groups]
        made: Optimizer = getattr(torch.optim, self.to)(groups, lr=self.lr)
        return made

    def patch(self, setup: Setup) -> str:
        """Return the method, or the line of a loop."""
        decay = "" if self.weight_decay is None else f", weight_decay={self.weight_decay}"
        made = f"torch.optim.{self.to}({{model}}.parameters(), lr={self.lr}{decay})"
        return configuration_code(setup.module, made)


class _ScaleRates(OptimizerRemedy):
    """A remedy that multiplies every learning rate by a factor."""

    factor: float

    def configure(self, configured: Any) -> Any:
        """Scale the learning rates."""
        scale_rates(configured, self.factor)
        return configured

    def patch(self, setup: Setup) -> str:
        """Return the optimizer with the new learning rate, as a number if the old one is known."""
        return configuration_code(setup.module, optimizer_code(setup.module, factor=self.factor))


@dataclass(frozen=True)
class LowerLearningRate(_ScaleRates):
    """Multiply every learning rate by a factor below 1, so that training needs more steps.

    Args:
        factor: above 0, below 1.

    Raises:
        ValueError: for another factor.

    Example:
        >>> LowerLearningRate(2.0)
        Traceback (most recent call last):
            ...
        ValueError: LowerLearningRate: factor is 2.0; expected a finite number above 0 and below 1
    """

    factor: float = 0.1

    def __post_init__(self) -> None:
        require_number(self, above=0, below=1, factor=self.factor)


@dataclass(frozen=True)
class RaiseLearningRate(_ScaleRates):
    """Multiply every learning rate by a factor above 1, which may make training unstable.

    Args:
        factor: above 1.

    Raises:
        ValueError: for another factor.

    Example:
        >>> from torch import nn
        >>> print(RaiseLearningRate(1e4).code(nn.Linear(1, 1)))
        optimizer = torch.optim.SGD(model.parameters(), lr=10000 * lr)
    """

    factor: float = 100.0

    def __post_init__(self) -> None:
        require_number(self, above=1, factor=self.factor)


@dataclass(frozen=True)
class WarmUp(OptimizerRemedy):
    """Increase the learning rate linearly over the first steps, on top of any schedule.

    At the start an adaptive optimizer has seen few gradients, and those of a Post-LN transformer are large near the
    output: full steps then do lasting harm. A checkpoint does not contain the number of warm-up steps done. For a run
    that is resumed, use the printed ``code``, whose scheduler is in the checkpoint.

    Args:
        steps: number of steps until the full learning rate, at least 1.

    Raises:
        ValueError: for a count below 1.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.ones(1)
        >>> optimizer = WarmUp(steps=4).configure(torch.optim.SGD([weight], lr=1.0))
        >>> for _ in range(2):
        ...     optimizer.step()
        >>> weight.item(), optimizer.param_groups[0]["lr"]
        (0.25, 1.0)

    References: Goyal et al., 2017, https://arxiv.org/abs/1706.02677; Liu et al., On the variance of the adaptive
    learning rate, 2020, https://arxiv.org/abs/1908.03265.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        require_whole(self, steps=self.steps)

    @property
    def acts_after(self) -> int:
        """Return the steps of the ramp: before its end the steps are only small."""
        return self.steps

    def configure(self, configured: Any) -> Any:
        """Add the ramp to each optimizer's step, so that it works with any scheduler."""
        for optimizer in optimizers_in(configured):
            ramp = _Ramp(self.steps)
            optimizer.register_step_pre_hook(ramp.lower)
            optimizer.register_step_post_hook(ramp.restore)
        return configured

    def patch(self, setup: Setup) -> str:
        """Return the code of a LinearLR. Chain an existing scheduler after it by a SequentialLR."""
        settings = f"start_factor={1 / self.steps:.3g}, total_iters={self.steps}"
        ramp = f"warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, {settings})"
        result = "{{'optimizer': optimizer, 'lr_scheduler': {{'scheduler': warm_up, 'interval': 'step'}}}}"
        return configuration_code(setup.module, optimizer_code(setup.module, "AdamW"), ramp, result=result)


def configured_copy(module: nn.Module) -> tuple[nn.Module, list[Optimizer]]:
    """Return a copy of a module and the optimizers that it configures; none if that fails outside of a Trainer."""
    copied: Any = copy_of(module)
    try:
        return copied, optimizers_in(copied.configure_optimizers())
    except Exception:  # anything: the method is the user's, and may ask for its Trainer
        return copied, []


def optimizers_of(module: nn.Module) -> list[Optimizer]:
    """Return the optimizers that a copy of a module configures; none if that fails outside of a Trainer.

    Example:
        >>> optimizers_of(nn.Linear(1, 1))
        []
    """
    return configured_copy(module)[1] if callable(getattr(module, "configure_optimizers", None)) else []


def optimizer_code(module: nn.Module, otherwise: str = "SGD", factor: float = 1.0) -> str:
    """Return the code that builds a module's optimizer, with its learning rate multiplied by a factor.

    Class and settings are those that ``configure_optimizers`` gives; ``otherwise`` is the class if they are unknown.

    Example:
        >>> optimizer_code(nn.Linear(1, 1), factor=0.1)
        'torch.optim.SGD({model}.parameters(), lr=0.1 * lr)'
    """
    found = optimizers_of(module)
    if not found:
        return f"torch.optim.{otherwise}({{model}}.parameters(), lr={'lr' if factor == 1 else f'{factor:g} * lr'})"
    known = signature(type(found[0])).parameters
    rate = float(found[0].param_groups[0]["lr"]) * factor
    others = {name: value for name, value in found[0].defaults.items() if name in known and name != "lr"}
    settings = [f", {name}={value!r}" for name, value in others.items() if value != known[name].default]
    return f"torch.optim.{type(found[0]).__name__}({{model}}.parameters(), lr={rate:.4g}{''.join(settings)})"


def configuration_code(module: nn.Module, optimizer: str, *lines: str, result: str = "optimizer") -> str:
    """Return the code of a LightningModule's ``configure_optimizers``; for other modules the lines of a training loop.

    Example:
        >>> print(configuration_code(nn.Linear(1, 1), "torch.optim.SGD({model}.parameters(), lr=0.1)"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    """
    body = [f"optimizer = {optimizer}", *lines]
    if not callable(getattr(module, "configure_optimizers", None)):
        return "\n".join(line.format(model="model") for line in body)
    indented = [f"    {line.format(model='self')}" for line in [*body, f"return {result}"]]
    return "\n".join(["def configure_optimizers(self):", *indented])


class _Ramp:
    """Lowers the learning rates during a step, and restores them so that a scheduler reads its own values."""

    def __init__(self, steps: int) -> None:
        self.steps, self.steps_done = steps, 0
        self._full: list[Any] = []

    def lower(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps_done += 1
        self._full = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * min(self.steps_done / self.steps, 1.0)

    def restore(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._full, strict=True):
            group["lr"] = rate
