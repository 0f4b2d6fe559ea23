"""Remedies for parameters that do not learn: frozen, in no optimizer, or cut off from the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.optimizer import configuration_code, configured_copy, optimizer_code
from gradwatch.remedies.optimizers_of_module import optimizers_in
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Remedy, Setup
from gradwatch.remedies.tracing import quoted, reached, users_line
from gradwatch.short_runs.wrap_method import owner_of, wrap_method
from gradwatch.torch_internals import NO_GRAD_MODULES, set_grad_enabled


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
        for param in _frozen(setup.module):
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


def _frozen(module: nn.Module) -> list[nn.Parameter]:
    frozen = [param for param in module.parameters() if not param.requires_grad and param.is_floating_point()]
    if not frozen:
        raise NothingToChange(
            f"every parameter of {type(module).__name__} requires a gradient; if one gets none, forward cuts the "
            "graph: remove the detach(), no_grad() or .data there"
        )
    return frozen


_DATA: Any = Tensor.data
_CUTS = (Tensor.detach, Tensor.detach_, torch.detach, _DATA.__get__)


@dataclass(frozen=True)
class KeepGraph(ModelRemedy):
    """Run the model without its ``detach()``, ``.data`` and ``no_grad()``, and print their lines.

    Use it to confirm the cause, not as a fix: some of these calls are intended (a target, a state between two batches),
    and the copy ignores all of them. Then change the printed lines yourself.

    Example:
        >>> class Cut(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).detach()
        >>> kept = KeepGraph().apply(Setup(Cut(2, 1), batch=torch.ones(1, 2)))
        >>> kept.module(torch.ones(1, 2)).requires_grad
        True
    """

    def change(self, setup: Setup) -> Setup:
        """Wrap the training step, or the forward pass of a plain module."""
        _cuts_of(setup)  # raises if there is nothing to keep
        wrap_method(setup.module, "training_step" if setup.trains_itself else "forward", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the method and ignore what cuts the graph."""
        with Uncut():
            return method(*args, **kwargs)

    def patch(self, setup: Setup) -> str:
        """Return the lines that cut the graph."""
        with suppress(NotApplicable):
            return quoted(_cuts_of(setup))
        return "# remove detach(), .data and no_grad() between that part and the loss"


class Uncut(TorchFunctionMode):
    """Mode that ignores requests of user code to detach a tensor or to disable gradients.

    Attributes:
        cuts: ``file:line`` of each ignored request; a request to detach counts if the tensor is in the graph.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> with Uncut() as uncut:
        ...     kept = (2 * weight).detach()
        >>> kept.requires_grad, len(uncut.cuts)
        (True, 1)
    """

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, or ignore it if it cuts the graph and user code called it."""
        # Libraries detach for good reasons: hooks, loggers, the no_grad() of an optimizer's step.
        cuts = func in _CUTS and isinstance(args[0], Tensor) and args[0].requires_grad and not args[0].is_leaf
        stops = func is set_grad_enabled and not args[0]
        place = users_line(*NO_GRAD_MODULES) if cuts or stops else ""
        if not place:
            return func(*args, **(kwargs or {}))
        if place not in self.cuts:
            self.cuts.append(place)
        return args[0] if cuts else None


def _cuts_of(setup: Setup) -> list[str]:
    """Return the lines by which a pass of a copy cuts parameters off; raise NotApplicable if none can be found."""
    if setup.batch is None:
        raise NotApplicable("only a pass shows where the graph is cut; give a batch: Setup(module, batch=batch)")
    uncut = Uncut()
    # Strictly more parameters must be reached: a detach() that costs no parameter its gradient is no fault.
    if not reached(setup, nullcontext()) < reached(setup, uncut):
        raise NothingToChange(
            f"{type(setup.module).__name__} cuts no parameter off; one without a gradient is not used, or a function "
            "after it has a slope of zero (rounding, a comparison)"
        )
    return uncut.cuts
