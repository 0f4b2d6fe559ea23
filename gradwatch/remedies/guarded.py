"""A mode in which torch's operations keep off the places where they, or their slopes, are not finite."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.places import users_line

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
