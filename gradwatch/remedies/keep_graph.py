"""Where a model's own code cuts autograd's graph, and how it trains when it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Setup
from gradwatch.remedies.tracing import quoted, reached, users_line
from gradwatch.short_runs.wrap_method import wrap_method

_DATA: Any = Tensor.data
_OF_NO_GRAD = "torch.autograd.grad_mode", "torch.utils._contextlib"
_CUTS = (Tensor.detach, Tensor.detach_, torch.detach, _DATA.__get__)


@dataclass(frozen=True)
class KeepGraph(ModelRemedy):
    """Run the model with its ``detach()``, ``.data`` and ``no_grad()`` left out, to see whether they are the fault.

    It tells the lines where they stand, for you to change: some are meant (a target, a state between two batches), and
    a copy that ignores all of them is a proof, no way to live.

    Example:
        >>> class Cut(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).detach()
        >>> kept = KeepGraph().apply(Setup(Cut(2, 1), batch=torch.ones(1, 2)))
        >>> kept.module(torch.ones(1, 2)).requires_grad
        True
    """

    fits: ClassVar[Mapping[str, float]] = {"frozen or detached part": 1.0}

    def change(self, setup: Setup) -> Setup:
        """Wrap the step, or the forward pass, of a model that cuts its graph."""
        _cuts_of(setup)
        wrap_method(setup.module, "training_step" if setup.trains_itself else "forward", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The method, with nothing cut."""
        with Uncut():
            return method(*args, **kwargs)

    def patch(self, setup: Setup) -> str:
        """The lines that cut."""
        with suppress(NotApplicable):
            return quoted(_cuts_of(setup))
        return "# remove detach(), .data and no_grad() between that part and the loss"


class Uncut(TorchFunctionMode):
    """While it is entered, nothing is detached and gradients stay enabled.

    Attributes:
        cuts: ``file:line`` of each place that asked for it, of tensors that are in the graph.

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
        """Leave out what cuts, where the model's own code asks for it; hooks and loggers detach for good reasons."""
        cuts = func in _CUTS and isinstance(args[0], Tensor) and args[0].requires_grad and not args[0].is_leaf
        stops = func is torch._C._set_grad_enabled and not args[0]
        place = users_line(*_OF_NO_GRAD) if cuts or stops else ""  # an optimizer's step has a no_grad() too
        if not place:
            return func(*args, **(kwargs or {}))
        if place not in self.cuts:
            self.cuts.append(place)
        return args[0] if cuts else None


def _cuts_of(setup: Setup) -> list[str]:
    """Where a pass of a copy cuts parameters off.

    Raises:
        NothingToChange: when it cuts none off.
        NotApplicable: when there is no batch to see it with.
    """
    if setup.batch is None:
        raise NotApplicable("where the graph is cut is seen in a pass; give a batch: Setup(module, batch=batch)")
    uncut = Uncut()
    if not reached(setup, nullcontext()) < reached(setup, uncut):
        raise NothingToChange(
            f"{type(setup.module).__name__} cuts no parameter off; one without a gradient is not used, or what comes "
            "behind it has a slope of zero (rounding, a comparison)"
        )
    return uncut.cuts
