"""Parts that do not learn because they were frozen, or because no optimizer was given them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from gradwatch.remedies.optimizer import construction_like, method_code
from gradwatch.remedies.remedy import ModelRemedy, NothingToChange, Remedy, Setup, copy_of
from gradwatch.short_runs.optimizers_of_module import optimizers_in
from gradwatch.short_runs.wrap_method import owner_of, wrap_method


@dataclass(frozen=True)
class UnfreezeAll(ModelRemedy):
    """Let every parameter learn. Where a part is frozen on purpose, this is no remedy.

    Example:
        >>> layer = nn.Linear(2, 1).requires_grad_(False)
        >>> UnfreezeAll().apply(layer).weight.requires_grad
        True
    """

    fits: ClassVar[Mapping[str, float]] = {"frozen or detached part": 1.0}

    def change(self, setup: Setup) -> Setup:
        """Require gradients."""
        for param in _frozen(setup.module).values():
            param.requires_grad_(True)
        return setup

    def patch(self, setup: Setup) -> str:
        """One line."""
        return f"model.requires_grad_(True)  # {len(_frozen(setup.module))} parameters are frozen"


@dataclass(frozen=True)
class TrainAll(Remedy):
    """Give the first optimizer, in its first group, every parameter that requires a gradient and that none was given.

    Example:
        >>> TrainAll().apply(nn.Linear(2, 1))
        Traceback (most recent call last):
            ...
        gradwatch.remedies.remedy.NothingToChange: Linear has no configure_optimizers that leaves a parameter out
    """

    fits: ClassVar[Mapping[str, float]] = {"frozen or detached part": 1.0}

    def change(self, setup: Setup) -> Setup:
        """Wrap the method that makes the optimizers."""
        _require_forgotten(setup.module)
        wrap_method(setup.module, "configure_optimizers", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the module configures, with the parameters that it left out."""
        configured = method(*args, **kwargs)
        optimizers = optimizers_in(configured)
        optimizers[0].param_groups[0]["params"] += forgotten(owner_of(method), optimizers).values()
        return configured

    def patch(self, setup: Setup) -> str:
        """The optimizer of all parameters."""
        return method_code(setup.module, [f"optimizer = {construction_like(setup.module, 'SGD')}", "return optimizer"])


def forgotten(module: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient and stand in none of the optimizers.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> list(forgotten(layer, [torch.optim.SGD([layer.weight], lr=0.1)]))
        ['bias']
    """
    held = {id(param) for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]}
    return {name: param for name, param in module.named_parameters() if param.requires_grad and id(param) not in held}


def _require_forgotten(module: nn.Module) -> None:
    copied: Any = copy_of(module)
    try:
        missing = forgotten(copied, optimizers_in(copied.configure_optimizers()))
    except Exception:  # whatever a user's method raises outside of a Trainer, or where there is none
        missing = {}
    if not missing:
        raise NothingToChange(f"{type(module).__name__} has no configure_optimizers that leaves a parameter out")


def _frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    params = dict(module.named_parameters())
    frozen = {name: p for name, p in params.items() if not p.requires_grad and p.is_floating_point()}
    if not frozen:
        raise NothingToChange(
            f"every parameter of {type(module).__name__} requires a gradient; one that gets none is cut off in "
            "forward: remove the detach(), no_grad() or .data there"
        )
    return frozen
