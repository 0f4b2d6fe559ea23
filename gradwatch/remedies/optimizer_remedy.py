"""What remedies of the optimizer share: they change what ``configure_optimizers`` returns, on the copy alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradwatch.remedies.configured import optimizers_in
from gradwatch.remedies.method import wrap_method
from gradwatch.remedies.remedy import Remedy
from gradwatch.remedies.setup import NotApplicable, Setup, copy_of


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
