"""A remedy that ignores the detach(), .data and no_grad() in a model's own code, and finds their lines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Setup
from gradwatch.remedies.tracing import quoted, reached, users_line
from gradwatch.short_runs.wrap_method import wrap_method
from gradwatch.torch_internals import NO_GRAD_MODULES, set_grad_enabled

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
    """Return the lines by which a pass of a copy cuts parameters off.

    Raises:
        NothingToChange: when no parameter is cut off.
        NotApplicable: when there is no batch for a pass.
    """
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
