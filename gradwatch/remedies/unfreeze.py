"""Remedies for parameters that do not learn: frozen ones, and ones in no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradwatch.remedies.optimizer import configuration_code, configured_copy, optimizer_code
from gradwatch.remedies.remedy import ModelRemedy, NothingToChange, Remedy, Setup
from gradwatch.short_runs.optimizers_of_module import optimizers_in
from gradwatch.short_runs.wrap_method import owner_of, wrap_method


@dataclass(frozen=True)
class UnfreezeAll(ModelRemedy):
    """Require gradients for every parameter. Do not use it for a part that is frozen on purpose.

    Example:
        >>> layer = nn.Linear(2, 1).requires_grad_(False)
        >>> UnfreezeAll().apply(layer).weight.requires_grad
        True
    """

    def change(self, setup: Setup) -> Setup:
        """Require gradients for the frozen parameters."""
        for param in _frozen(setup.module).values():
            param.requires_grad_(True)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line."""
        return f"model.requires_grad_(True)  # {len(_frozen(setup.module))} parameters are frozen"


@dataclass(frozen=True)
class TrainAll(Remedy):
    """Add every parameter that requires a gradient and is in no optimizer to the first group of the first optimizer.

    Example:
        >>> TrainAll().apply(nn.Linear(2, 1))
        Traceback (most recent call last):
            ...
        gradwatch.remedies.remedy.NothingToChange: Linear has no configure_optimizers that leaves a parameter out
    """

    def change(self, setup: Setup) -> Setup:
        """Wrap the method that makes the optimizers."""
        copied, optimizers = configured_copy(setup.module)
        if not optimizers or not forgotten(copied, optimizers):
            kind = type(setup.module).__name__
            raise NothingToChange(f"{kind} has no configure_optimizers that leaves a parameter out")
        wrap_method(setup.module, "configure_optimizers", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the optimizers with the forgotten parameters added."""
        configured = method(*args, **kwargs)
        optimizers = optimizers_in(configured)
        optimizers[0].param_groups[0]["params"] += forgotten(owner_of(method), optimizers).values()
        return configured

    def patch(self, setup: Setup) -> str:
        """Return the code of an optimizer of all parameters."""
        return configuration_code(setup.module, optimizer_code(setup.module))


def forgotten(module: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient and are in none of the optimizers.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> list(forgotten(layer, [torch.optim.SGD([layer.weight], lr=0.1)]))
        ['bias']
    """
    held = {id(param) for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]}
    return {name: param for name, param in module.named_parameters() if param.requires_grad and id(param) not in held}


def _frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    params = dict(module.named_parameters())
    frozen = {name: p for name, p in params.items() if not p.requires_grad and p.is_floating_point()}
    if not frozen:
        raise NothingToChange(
            f"every parameter of {type(module).__name__} requires a gradient; if one gets none, forward cuts the "
            "graph: remove the detach(), no_grad() or .data there"
        )
    return frozen
