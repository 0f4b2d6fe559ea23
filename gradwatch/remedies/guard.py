"""A mode in which torch's operations keep off the places where they, or their slopes, are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.remedy import ModelRemedy, NothingToChange, Setup
from gradwatch.remedies.tracing import quoted, reached, users_line
from gradwatch.short_runs.wrap_method import wrap_method

_ROOTS = {"sqrt", "rsqrt", "log", "log2", "log10"}
_ARCS = {"acos", "asin", "arccos", "arcsin"}
_QUOTIENTS = {"div", "true_divide", "divide", "__truediv__"}
_TURNED = {"__rtruediv__", "__rdiv__", "reciprocal"}  # the first argument is the divisor


class Guarded(TorchFunctionMode):
    """While it is entered, operations keep off their singular places.

    Args:
        eps: the distance.

    Attributes:
        operations: how many could be guarded.
        places: ``file:line`` of those where the guard made a difference.

    Example:
        >>> with Guarded(1e-6) as guarded:
        ...     zero = torch.zeros(1).log()
        >>> bool(zero.isfinite()), guarded.operations, len(guarded.places)
        (True, 1, 1)
    """

    depth: ClassVar[int] = 0  # how many are entered

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps, self.operations = eps, 0
        self.places: list[str] = []

    def __enter__(self) -> Any:
        Guarded.depth += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> Any:
        Guarded.depth -= 1
        return super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, with arguments off the places."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}  # sqrt_, in place, is left as it is
        if not args:
            return func(**kwargs)
        if name == "std" and _is_number(args[0]):
            return self._deviation(args, kwargs)
        return func(*self._moved(name, args), **kwargs)

    def _moved(self, name: str, args: Any) -> Any:
        if name in _ROOTS and _is_number(args[0]):
            return (self._kept(args[0], args[0].clamp(min=self.eps)), *args[1:])
        if name in _ARCS and _is_number(args[0]):
            return (self._kept(args[0], args[0].clamp(self.eps - 1, 1 - self.eps)), *args[1:])
        if name in ("pow", "__pow__") and _is_number(args[0]) and isinstance(args[1], float) and args[1] < 1:
            return (self._kept(args[0], args[0].clamp(min=self.eps)), *args[1:])
        if name in _TURNED and _is_number(args[0]):
            return (self._kept(args[0], self._off_zero(args[0])), *args[1:])
        if name in _QUOTIENTS and len(args) > 1 and _is_number(args[1]):
            return (args[0], self._kept(args[1], self._off_zero(args[1])), *args[2:])
        return args

    def _deviation(self, args: Any, kwargs: Any) -> Tensor:
        """The root of the variance; of a single value, which has none, that of eps."""
        variance = torch.var(*args, **kwargs)
        if variance.isnan().any() and bool(args[0].isfinite().all()):
            options = {name: value for name, value in kwargs.items() if name not in ("unbiased", "correction")}
            variance = torch.var(*[arg for arg in args if not isinstance(arg, bool)], **options, correction=0)
        return self._kept(variance, variance.clamp(min=self.eps**2)).sqrt()

    def _off_zero(self, values: Tensor) -> Tensor:
        return torch.where(values.abs() < self.eps, torch.where(values < 0, -self.eps, self.eps), values)

    def _kept(self, values: Tensor, moved: Tensor) -> Tensor:
        self.operations += 1
        place = users_line("torch")
        if place and place not in self.places and bool((values != moved).any()):
            self.places.append(place)
        return moved


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


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
