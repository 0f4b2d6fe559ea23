"""A remedy that keeps operations away from arguments at which they, or their slopes, are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradwatch.checks import require_positive
from gradwatch.remedies.remedy import ModelRemedy, NothingToChange, Setup
from gradwatch.remedies.tracing import quoted, reached, users_line
from gradwatch.short_runs.wrap_method import wrap_method

_ROOTS = {"sqrt", "rsqrt", "log", "log2", "log10"}
_ARCS = {"acos", "asin", "arccos", "arcsin"}
_QUOTIENTS = {"div", "true_divide", "divide", "__truediv__"}
_DIVISOR_FIRST = {"__rtruediv__", "__rdiv__", "reciprocal"}
_IN_LOGS: dict[str, Callable[..., Tensor]] = {
    "softmax": nn.functional.log_softmax, "sigmoid": nn.functional.logsigmoid
}  # fmt: skip
_ABOVE = 1.001  # times eps: no rounding of a probability takes it below eps, where a log would be moved


@dataclass(frozen=True)
class GuardOperations(ModelRemedy):
    """Run the model with the arguments of roots, logs, quotients, deviations and powers kept off singular points.

    It prints the lines where the batch gets to such a point: add the guard there yourself. A moved argument changes the
    result slightly, and its gradient is 0. A softmax or Sigmoid is kept above ``eps``, with the slope of its logarithm,
    so that a log of it passes the gradient as ``log_softmax`` does.

    Args:
        eps: smallest distance from a singular point.

    Raises:
        ValueError: when ``eps`` is not positive.

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

    def __post_init__(self) -> None:
        require_positive(self, eps=self.eps)

    def change(self, setup: Setup) -> Setup:
        """Wrap the training step, and the forward pass of each module that is not torch's."""
        own = [part for part in setup.module.modules() if not type(part).__module__.startswith("torch.")]
        if setup.batch is not None:
            self._unguarded(setup)
        elif not own:
            raise NothingToChange(
                f"{type(setup.module).__name__} has only torch's own modules, which are guarded already"
            )
        if setup.trains_itself:
            wrap_method(setup.module, "training_step", self)
        for part in own:
            wrap_method(part, "forward", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the method in the mode, unless an outer module has entered it."""
        with nullcontext() if Guarded.depth else Guarded(self.eps):
            return method(*args, **kwargs)

    def patch(self, setup: Setup) -> str:
        """Return the lines that need a guard."""
        with suppress(NothingToChange):
            if setup.batch is not None and (places := self._unguarded(setup)):
                return f"# to be guarded:\n{quoted(places)}"
        return f"# add {self.eps:g} under roots, in logs and to divisors; take no deviation of a single value"

    def _unguarded(self, setup: Setup) -> list[str]:
        guarded = Guarded(self.eps)
        reached(setup, guarded)
        if not guarded.operations:
            raise NothingToChange(
                f"{type(setup.module).__name__} calls no root, log, division or deviation that could be guarded"
            )
        return guarded.places


class Guarded(TorchFunctionMode):
    """Mode that moves the arguments of operations away from singular points, such as 0 for a root, a log or a divisor.

    Attributes:
        operations: number of guarded calls.
        places: ``file:line`` of the calls with a moved argument.
    """

    depth: ClassVar[int] = 0  # number of modes entered

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps, self.operations = eps, 0
        self._floor = eps * _ABOVE
        self.places: list[str] = []

    def __enter__(self) -> Any:
        Guarded.depth += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> Any:
        Guarded.depth -= 1
        return super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function with its argument moved, if it needs that."""
        # An operation in place, such as sqrt_, is not guarded: it has to write to its own argument.
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if not args:
            return func(**kwargs)
        if name == "std" and _is_number(args[0]):
            return self._deviation(args, kwargs)
        if name in _IN_LOGS and _is_number(args[0]):
            return self._probability(func, _IN_LOGS[name], args, kwargs)
        return func(*self._moved(name, args), **kwargs)

    def _moved(self, name: str, args: Any) -> Any:
        position = 1 if name in _QUOTIENTS else 0
        if position >= len(args) or not _is_number(args[position]):
            return args
        values: Tensor = args[position]
        power = args[1] if name in ("pow", "__pow__") and len(args) > 1 else None
        if name in _ROOTS or (isinstance(power, float) and power < 1):
            moved = values.clamp(min=self.eps)
        elif name in _ARCS:
            moved = values.clamp(self.eps - 1, 1 - self.eps)
        elif name in _QUOTIENTS | _DIVISOR_FIRST:
            moved = torch.where(values.abs() < self.eps, torch.where(values < 0, -self.eps, self.eps), values)
        else:
            return args
        return (*args[:position], self._record(values, moved), *args[position + 1 :])

    def _probability(self, func: Any, in_logs: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        """Return the probabilities, those below eps moved to it with a gradient that a log brings back to its size."""
        plain: Tensor = func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key != "_stacklevel"}
        low = (plain < self.eps) & (args[0] > -math.inf)  # what a mask of -inf shuts out stays shut out
        if not bool(low.any()):
            return plain
        logs = in_logs(*args[:2], **options)
        slope = (logs - logs.detach()).to(plain.dtype)  # 0, with the gradient of the logarithm
        return torch.where(low, self._floor * (1 + slope), plain)

    def _deviation(self, args: Any, kwargs: Any) -> Tensor:
        """Return the root of the variance, at least eps; eps for a single value, which has no variance."""
        variance = torch.var(*args, **kwargs)
        if variance.isnan().any() and bool(args[0].isfinite().all()):
            # The unbiased variance of one value is 0 / 0. The biased one is 0, and the clamp below moves it.
            options = {name: value for name, value in kwargs.items() if name not in ("unbiased", "correction")}
            variance = torch.var(*[arg for arg in args if not isinstance(arg, bool)], **options, correction=0)
        return self._record(variance, variance.clamp(min=self.eps**2)).sqrt()

    def _record(self, values: Tensor, moved: Tensor) -> Tensor:
        self.operations += 1
        place = users_line("torch")
        # A probability that was kept at eps would have gone below.
        if place and place not in self.places and bool(((values != moved) | (values == self._floor)).any()):
            self.places.append(place)
        return moved


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
