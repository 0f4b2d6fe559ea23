"""A remedy that gives functions without a slope, such as a sign or a rounding, one that the gradient can follow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Setup
from gradwatch.remedies.tracing import CALLING, quoted, reached, users_line
from gradwatch.short_runs.wrap_method import wrap_method

_SIGNS = {"sign", "sgn"}
_ROUNDED = {"round", "floor", "ceil", "trunc", "fix"}
_RISING, _FALLING = {"gt", "ge", "greater", "greater_equal"}, {"lt", "le", "less", "less_equal"}
_CASTS = {"float", "double", "to", "type_as", "type", "one_hot"}


@dataclass(frozen=True)
class SmoothSteps(ModelRemedy):
    """Run the model with a slope where its functions have steps, and print their lines.

    A sign becomes a Tanh. A comparison that is cast to numbers becomes a Sigmoid, and the one-hot code of an ``argmax``
    a softmax. A rounded value stays as it is, and passes the gradient as if it were not rounded. Predictions change
    where a step becomes smooth: write what you want at the printed lines.

    Example:
        >>> class Signs(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).sign()
        >>> smooth = SmoothSteps().apply(Setup(Signs(2, 1), batch=torch.ones(1, 2))).module
        >>> smooth(torch.ones(1, 2)).sum().backward()
        >>> bool(smooth.weight.grad.any())
        True

    References: Bengio, Leonard, Courville, Estimating or propagating gradients through stochastic neurons, 2013,
    https://arxiv.org/abs/1308.3432 (the straight-through estimator).
    """

    def change(self, setup: Setup) -> Setup:
        """Wrap the training step, and the forward pass of each module that is not torch's."""
        smoothed = _Smoothed(self._places(setup))
        if setup.trains_itself:
            wrap_method(setup.module, "training_step", smoothed)
        for part in [part for part in setup.module.modules() if not type(part).__module__.startswith("torch.")]:
            wrap_method(part, "forward", smoothed)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return the lines with a step."""
        with suppress(NotApplicable):
            return f"# without a slope:\n{quoted(self._places(setup))}"
        return "# write torch.tanh for sign, torch.sigmoid for a comparison, x + (x.round() - x).detach() for round"

    def _places(self, setup: Setup) -> tuple[str, ...]:
        if setup.batch is None:
            raise NotApplicable("only a pass shows where a step is; give a batch: Setup(module, batch=batch)")
        smooth = Smooth()
        reached(setup, smooth)
        if not smooth.places:
            raise NothingToChange(f"{type(setup.module).__name__} calls no sign, rounding or comparison on the way")
        return tuple(smooth.places)


@dataclass(frozen=True)
class _Smoothed:
    """Runs a method with a slope at some places, unless an outer method does already."""

    places: tuple[str, ...]

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with Smooth(self.places):
            return method(*args, **kwargs)


class Smooth(TorchFunctionMode):
    """Mode that replaces steps in user code by what has a slope.

    Args:
        only: ``file:line`` of the steps to replace; None replaces those of tensors that require a gradient.

    Attributes:
        places: ``file:line`` of the calls that were replaced.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> with Smooth():
        ...     rounded = (0.7 * x).round()
        >>> rounded.item(), torch.autograd.grad(rounded, x)[0].item() > 0
        (1.0, True)
    """

    def __init__(self, only: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.places: list[str] = []
        self._only = only
        self._tagged: list[tuple[Tensor, Tensor, str]] = []  # a comparison or an index, and what has a slope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, or what has a slope in its place."""
        name, options = getattr(func, "__name__", ""), kwargs or {}
        result = func(*args, **options)
        if not args or not isinstance(args[0], Tensor) or not isinstance(result, Tensor):
            return result
        if name in _CASTS:
            return self._cast(args[0], result)
        smooth = _smooth(name, args, options, result)
        place = "" if smooth is None else users_line(*CALLING)
        if smooth is None or not self._is_meant(place, args[0]):
            return result
        if not result.is_floating_point():
            self._tagged.append((result, smooth, place))
            return result
        return self._told(smooth, place)

    def _is_meant(self, place: str, given: Tensor) -> bool:
        return bool(place) and (given.requires_grad if self._only is None else place in self._only)

    def _cast(self, given: Tensor, result: Tensor) -> Tensor:
        for tagged, smooth, place in self._tagged:
            if tagged is given and smooth.shape == result.shape:
                return self._told(smooth.to(result.dtype) if result.is_floating_point() else smooth, place)
        return result

    def _told(self, smooth: Tensor, place: str) -> Tensor:
        self.places += [place] if place not in self.places else []
        return smooth


def _smooth(name: str, args: Any, options: Any, result: Tensor) -> Tensor | None:
    """Return what has a slope in place of a step's result; None where the function is no step."""
    given: Tensor = args[0]
    if not given.is_floating_point():
        return None
    if name in _SIGNS:
        return given.tanh()
    if name in _ROUNDED:
        return result.detach() + (given - given.detach())
    if name in _RISING | _FALLING and len(args) > 1:
        return torch.sigmoid(given - args[1] if name in _RISING else args[1] - given)
    dim = args[1] if len(args) > 1 else options.get("dim")
    return given.softmax(-1) if name == "argmax" and dim in (-1, given.dim() - 1) else None
