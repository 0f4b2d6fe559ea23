"""Checks of a transform's settings, and the coefficient that brings a norm under a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.probe.shards import over_shards
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit, Outcome


def check_number(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raise a ValueError unless ``low <= value <= high`` (``low < value`` where ``above``) and the value is finite.

    Example:
        >>> check_number("max_norm", -1.0, 0, above=True)
        Traceback (most recent call last):
        ValueError: max_norm is -1.0; expected a finite number above 0
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        bounds = f"above {low}" if above else f"of at least {low}"
        bounds += "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} is {value!r}; expected a finite number {bounds}")


def check_count(name: str, value: int, low: int = 1) -> None:
    """Raise a ValueError unless ``value`` is an integer of at least ``low``.

    Example:
        >>> check_count("history", 0)
        Traceback (most recent call last):
        ValueError: history is 0; expected an integer of at least 1
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {low}")


def shrinking(norms: Tensor, bounds: Tensor | float) -> Tensor:
    """What to multiply by so that each norm is at most its bound; 1 where it is already, or where it is not finite.

    ``torch.nn.utils.clip_grad_norm_`` adds 1e-6 to the norm. Nothing is added here, as no norm above a bound is 0: a
    bound of 1e-6 is then met as well, and a second clip changes nothing.

    Example:
        >>> shrinking(torch.tensor([4.0, 0.5, float("inf")]), 1.0)
        tensor([0.2500, 1.0000, 1.0000])
    """
    return torch.where((norms > bounds) & norms.isfinite(), bounds / norms, 1.0)


def stretching(norms: Tensor, targets: Tensor | float, eps: float) -> Tensor:
    """What to multiply by so that each norm becomes its target; 1 where it is not finite.

    Example:
        >>> stretching(torch.tensor([4.0, 0.0, float("nan")]), 1.0, eps=1e-12)
        tensor([2.5000e-01, 1.0000e+12, 1.0000e+00])
    """
    return torch.where(norms.isfinite(), targets / norms.clamp(min=eps), 1.0)


@dataclass(frozen=True)
class ClipByValue(GradientEdit):
    r"""Bring each entry into an interval: ``[-bound, bound]``, or from ``lowest`` to ``highest``.

    .. math:: g_i \leftarrow \min(\max(g_i, low), high)

    Use it where single entries are wild and the rest is sound. It turns the direction of the gradient: the larger
    entries lose most. ``ClipByGlobalNorm`` keeps the direction.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. Real and imaginary parts are clipped apart.

    Args:
        bound: largest absolute value, positive.
        lowest, highest: the interval instead; it holds 0, so that no zero entry moves.

    Raises:
        ValueError: when neither or both are given, or the interval is empty or without 0.

    Non-finite gradients: Inf becomes the bound; NaN stays.
    Cost: two passes; the first only finds out whether anything is clipped. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> weight.grad = torch.tensor([-3.0, 0.1, 2.0])
        >>> outcome = ClipByValue(1.0)({"weight": weight})
        >>> weight.grad, outcome.clipped
        (tensor([-1.0000,  0.1000,  1.0000]), tensor(True))

    References: ``torch.nn.utils.clip_grad_value_``, with one bound.
    """

    bound: float | None = None
    lowest: float | None = None
    highest: float | None = None
    elementwise = True
    is_clip = True

    def __post_init__(self) -> None:
        if (self.bound is None) == (self.lowest is None and self.highest is None):
            raise ValueError(f"{self!r}: expected either a bound, or a lowest and a highest value")
        if self.bound is not None:
            check_number("bound", self.bound, 0, above=True)
            return
        low, high = self.lowest, self.highest
        if low is None or high is None or not (-math.inf < low <= 0 <= high < math.inf and low < high):
            raise ValueError(f"lowest={low!r}, highest={high!r}: expected both, finite, with lowest <= 0 <= highest")

    @property
    def _interval(self) -> tuple[float, float]:
        if self.bound is not None:
            return -self.bound, self.bound
        return self.lowest or 0.0, self.highest or 0.0

    def edit(self, gradients: Gradients) -> Outcome:
        """Clamp all entries."""
        beyond = [self._clamp_(values).to(gradients.home, non_blocking=True) for values in gradients.values]
        return Outcome(clipped=(over_shards(torch.stack(beyond), gradients.grads, "max") > 0).any())

    def _clamp_(self, values: Tensor) -> Tensor:
        if values.numel() == 0:
            return values.new_zeros((), dtype=torch.uint8)
        largest = torch.finfo(values.dtype).max
        low, high = (min(max(bound, -largest), largest) for bound in self._interval)
        least, most = torch.aminmax(values)
        values.clamp_(low, high)
        return ((least < low) | (most > high)).to(torch.uint8)


@dataclass(frozen=True)
class ClipByNorm(GradientEdit):
    r"""Scale each parameter's gradient so that its L2 norm is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min(1, c / \lVert g \rVert_2)

    Use it where a single layer explodes and should not slow the others down, as a global clip would. It changes the
    balance between parameters; the direction of each one's gradient is kept.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        max_norm: largest norm of one parameter's gradient, positive.

    Raises:
        ValueError: when ``max_norm`` is not a positive number.

    Non-finite gradients: a gradient with NaN or Inf in it stays as it is; the others are clipped.
    Cost: one fused norm pass, one multiplication a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> outcome = ClipByNorm(1.0)({"weight": weight})
        >>> weight.grad
        tensor([0.6000, 0.8000])

    References: Mikolov, Statistical Language Models Based on Neural Networks, 2012; ``tf.clip_by_norm``.
    """

    max_norm: float
    is_clip = True

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, 0, above=True)

    def edit(self, gradients: Gradients) -> Outcome:
        """Scale those whose norm is above the bound."""
        coefficients = shrinking(gradients.norms(), self.max_norm)
        gradients.scale_each_(coefficients)
        return Outcome(clipped=(coefficients < 1).any())


@dataclass(frozen=True)
class ClipByGlobalNorm(GradientEdit):
    r"""Scale all gradients together so that their p-norm, as one vector, is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min(1, c / \lVert (g_1, \dots, g_n) \rVert_p)

    The first thing to try against exploding gradients, and the usual one for recurrent networks and transformers. The
    direction is kept. If it clips on most steps it has become a part of the learning rate: lower that instead.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        max_norm: largest norm, positive.
        p: order of the norm, above 0; ``math.inf`` for the largest absolute entry (real and imaginary parts apart).

    Raises:
        ValueError: when ``max_norm`` or ``p`` is not positive.

    Non-finite gradients: nothing is changed. torch's function would set every other gradient to 0 for one Inf, and to
    NaN for one NaN; then nobody could tell where it began. Put ``SkipNonFinite`` in front to leave out such a step.
    Cost: one fused norm pass and one fused multiplication, as torch's; no sync, no state. Unlike torch's, a finite
    gradient of 1e20 is clipped, not set to 0. Orders other than 2 read the gradients in float64.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> ClipByGlobalNorm(1.0)({"weight": weight}).coefficient
        tensor(0.2000, dtype=torch.float64)
        >>> weight.grad
        tensor([0.6000, 0.8000])

    References: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013,
    https://arxiv.org/abs/1211.5063; ``torch.nn.utils.clip_grad_norm_``, which adds 1e-6 to the norm.
    """

    max_norm: float
    p: float = 2.0
    is_clip = True

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, 0, above=True)
        if self.p != math.inf:
            check_number("p", self.p, 0, above=True)

    def edit(self, gradients: Gradients) -> Outcome:
        """Scale all by one number."""
        return clip_all(gradients, gradients.total_norm(self.p), self.max_norm)


def clip_all(gradients: Gradients, norm: Tensor, bound: Tensor | float) -> Outcome:
    """Scale all gradients by what brings ``norm`` under ``bound``."""
    coefficient = shrinking(norm, bound)
    gradients.scale_(coefficient)
    return Outcome(clipped=coefficient < 1, coefficient=coefficient)
