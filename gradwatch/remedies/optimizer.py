"""What remedies of the optimizer share: they change what ``configure_optimizers`` returns, on the copy alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from gradwatch.remedies.remedy import NotApplicable, Remedy, Setup, copy_of
from gradwatch.short_runs.optimizers_of_module import exchange, optimizers_in, scale_rates
from gradwatch.short_runs.wrap_method import wrap_method


class OptimizerRemedy(Remedy):
    """A remedy that changes what ``configure_optimizers`` returns, on the copy alone."""

    def change(self, setup: Setup) -> Setup:
        """Wrap the method."""
        if not setup.trains_itself:
            raise NotApplicable(
                f"{type(setup.module).__name__} does not say how it is trained (it has no configure_optimizers). "
                f"In your training loop, write:\n{self.code(setup.module)}"
            )
        wrap_method(setup.module, "configure_optimizers", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the module configures, changed."""
        return self.configure(method(*args, **kwargs))

    @abstractmethod
    def configure(self, configured: Any) -> Any:
        """Change what was configured, in any form that Lightning allows."""


def optimizers_of(module: nn.Module) -> list[Optimizer]:
    """The optimizers that a copy of a module configures; none where it has to be in a Trainer for that.

    Example:
        >>> optimizers_of(nn.Linear(1, 1))
        []
    """
    if not callable(getattr(module, "configure_optimizers", None)):
        return []
    copied: Any = copy_of(module)
    try:
        return optimizers_in(copied.configure_optimizers())
    except Exception:  # whatever a user's method raises outside of a Trainer
        return []


def construction_like(module: nn.Module, otherwise: str, factor: float = 1.0) -> str:
    """The code that makes the optimizer of a module again, with its rate times a factor.

    Example:
        >>> construction_like(nn.Linear(1, 1), "SGD", 0.1)
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


def method_code(module: nn.Module, lines: list[str]) -> str:
    """The lines as a method of a LightningModule, else as lines of a training loop.

    Example:
        >>> print(method_code(nn.Linear(1, 1), ["optimizer = torch.optim.SGD({model}.parameters(), lr=0.1)"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    """
    if not callable(getattr(module, "configure_optimizers", None)):
        return "\n".join(line.format(model="model") for line in lines if not line.startswith("return"))
    body = [f"    {line.format(model='self')}" for line in lines]
    return "\n".join(["def configure_optimizers(self):", *body])


@dataclass(frozen=True)
class ChangeOptimizer(OptimizerRemedy):
    """Train with another optimizer; one that scales each parameter's step by itself needs no large gradients.

    Parameter groups stay, and so do the ratios of their learning rates; a scheduler goes on with the new rate.

    Args:
        to: class in ``torch.optim``.
        lr: learning rate of the first parameter group.
        weight_decay: of all groups; None keeps theirs.

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
    fits: ClassVar[Mapping[str, float]] = {
        "initialization too small": 0.5,
        "saturating activation": 0.4,
        "missing normalization or skip": 0.4,
        "unscaled target": 0.5,
        "learning rate too high": 0.5,
    }

    def __post_init__(self) -> None:
        made = getattr(torch.optim, self.to, None)
        if not (isinstance(made, type) and issubclass(made, Optimizer)) or made is Optimizer:
            raise ValueError(f"to is {self.to!r}; expected the name of an optimizer in torch.optim, such as 'AdamW'")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr!r}; expected a number above 0")

    def change(self, setup: Setup) -> Setup:
        """Unless it is there already."""
        kinds = {type(optimizer).__name__ for optimizer in optimizers_of(setup.module)}
        if kinds == {self.to}:
            raise NotApplicable(f"{type(setup.module).__name__} is trained with {self.to} already; lower its rate")
        return super().change(setup)

    def configure(self, configured: Any) -> Any:
        """Exchange each optimizer."""
        found = optimizers_in(configured)
        old = float(found[0].param_groups[0]["lr"]) if found else 0.0
        if old > 0:
            scale_rates(configured, self.lr / old)
        return exchange(configured, self._new)

    def _new(self, old: Optimizer) -> Optimizer:
        # What is no setting of the old optimizer was put there by a scheduler or the user, and is needed again.
        dropped = {*old.defaults} - {"lr", "weight_decay"}
        groups = [{key: group[key] for key in group if key not in dropped} for group in old.param_groups]
        if self.weight_decay is not None:
            groups = [{**group, "weight_decay": self.weight_decay} for group in groups]
        made: Optimizer = getattr(torch.optim, self.to)(groups, lr=self.lr)
        return made

    def patch(self, setup: Setup) -> str:
        """The method, or the line of a loop."""
        decay = "" if self.weight_decay is None else f", weight_decay={self.weight_decay}"
        made = f"torch.optim.{self.to}({{model}}.parameters(), lr={self.lr}{decay})"
        return method_code(setup.module, [f"optimizer = {made}", "return optimizer"])


class _ScaleRates(OptimizerRemedy):
    """Multiplies every learning rate by a factor."""

    factor: float

    def configure(self, configured: Any) -> Any:
        """Scale the rates."""
        scale_rates(configured, self.factor)
        return configured

    def patch(self, setup: Setup) -> str:
        """With the new rate as a number, where the old one is known."""
        made = construction_like(setup.module, "SGD", self.factor)
        return method_code(setup.module, [f"optimizer = {made}", "return optimizer"])


@dataclass(frozen=True)
class LowerLearningRate(_ScaleRates):
    """Multiply every learning rate by a factor below 1.

    Args:
        factor: above 0, below 1.

    Raises:
        ValueError: for another factor.

    Example:
        >>> LowerLearningRate(2.0)
        Traceback (most recent call last):
            ...
        ValueError: factor is 2.0; expected a number above 0 and below 1
    """

    factor: float = 0.1
    fits: ClassVar[Mapping[str, float]] = {
        "learning rate too high": 1.0,
        "missing warm-up": 0.4,
        "unscaled target": 0.5,
        "dead ReLU": 0.5,
        "unscaled input": 0.4,
        "initialization too large": 0.3,
    }

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"factor is {self.factor!r}; expected a number above 0 and below 1")


@dataclass(frozen=True)
class RaiseLearningRate(_ScaleRates):
    """Multiply every learning rate by a factor above 1.

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
    fits: ClassVar[Mapping[str, float]] = {"learning rate too low": 1.0}

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor!r}; expected a number above 1")


@dataclass(frozen=True)
class WarmUp(OptimizerRemedy):
    """Let the learning rate rise in a line over the first steps, on top of whatever schedule there is.

    At the start an adaptive optimizer knows little of the gradient's size, and that of a Post-LN transformer is large
    near the output: full steps then do harm that is not made good. The count of steps is not in a checkpoint; the
    ``code`` is, so use that for runs that are resumed.

    Args:
        steps: until the full rate, at least 1.

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
    fits: ClassVar[Mapping[str, float]] = {"missing warm-up": 1.0, "learning rate too high": 0.5, "outlier batch": 0.1}

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; expected an integer of at least 1")

    def configure(self, configured: Any) -> Any:
        """Hook the ramp to each optimizer's step, so that it composes with any scheduler."""
        for optimizer in optimizers_in(configured):
            ramp = _Ramp(self.steps)
            optimizer.register_step_pre_hook(ramp.lower)
            optimizer.register_step_post_hook(ramp.restore)
        return configured

    def patch(self, setup: Setup) -> str:
        """A LinearLR; one that there is already goes behind it in a SequentialLR."""
        made = construction_like(setup.module, "AdamW")
        settings = f"start_factor={1 / self.steps:.3g}, total_iters={self.steps}"
        ramp = f"torch.optim.lr_scheduler.LinearLR(optimizer, {settings})"
        step = "return {{'optimizer': optimizer, 'lr_scheduler': {{'scheduler': warm_up, 'interval': 'step'}}}}"
        return method_code(setup.module, [f"optimizer = {made}", f"warm_up = {ramp}", step])


class _Ramp:
    """Lowers the rates for the time of a step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0
        self._full: list[Any] = []

    def lower(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.taken += 1
        self._full = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * min(self.taken / self.steps, 1.0)

    def restore(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._full, strict=True):
            group["lr"] = rate
