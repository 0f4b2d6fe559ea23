"""Roots, logs and divisions kept off the places where they, or their slopes, are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwatch.remedies.guarded import Guarded
from gradwatch.remedies.method import wrap_method
from gradwatch.remedies.places import quoted
from gradwatch.remedies.reach import reached
from gradwatch.remedies.remedy import ModelRemedy
from gradwatch.remedies.setup import NothingToChange, Setup


@dataclass(frozen=True)
class GuardOperations(ModelRemedy):
    """Run the model with its roots, logs, quotients, deviations and powers kept a little off their singular places.

    It tells the lines where the batch comes to such a place, for you to change.

    Args:
        eps: the distance that is kept.

    Raises:
        ValueError: when it is not positive.

    Example:
        >>> import torch
        >>> class Root(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return (0 * super().forward(x)).sqrt()
        >>> guarded = GuardOperations().apply(Setup(Root(2, 1), batch=torch.ones(1, 2))).module
        >>> guarded(torch.ones(1, 2)).sum().backward()
        >>> guarded.weight.grad
        tensor([[0., 0.]])
    """

    eps: float = 1e-6
    fits: ClassVar[Mapping[str, float]] = {"unguarded operation": 1.0}

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps!r}; expected a number above 0")

    def change(self, setup: Setup) -> Setup:
        """Wrap the training step, and the forward pass of each part that is not torch's."""
        own = [part for part in setup.module.modules() if not type(part).__module__.startswith("torch.")]
        if setup.batch is not None:
            self._seen(setup)
        elif not own:
            raise NothingToChange(f"{type(setup.module).__name__} is made of torch's own modules, which are guarded")
        if setup.trains_itself:
            wrap_method(setup.module, "training_step", self)
        for part in own:
            wrap_method(part, "forward", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The method, guarded."""
        with nullcontext() if Guarded.depth else Guarded(self.eps):  # a part's forward within a whole's
            return method(*args, **kwargs)

    def patch(self, setup: Setup) -> str:
        """The lines that need a guard."""
        with suppress(NothingToChange):
            if setup.batch is not None and (places := self._seen(setup)):
                return f"# to be guarded:\n{quoted(places)}"
        return f"# add {self.eps:g} under roots, in logs and to divisors; leave out deviations of a single value"

    def _seen(self, setup: Setup) -> list[str]:
        guarded = Guarded(self.eps)
        reached(setup, guarded)
        if not guarded.operations:
            raise NothingToChange(
                f"{type(setup.module).__name__} calls no root, log, division or deviation that could be guarded"
            )
        return guarded.places
