"""Clips with a fixed bound: on each entry, on each parameter's norm, on the norm of all gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.checks import require_number
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit, Outcome


@dataclass(frozen=True)
class ClipByValue(GradientEdit):
    r"""Clamp each entry to an interval: ``[-bound, bound]``, or from ``lowest`` to ``highest``.

    .. math:: g_i \leftarrow \min(\max(g_i, low), high)

    Use it where a few entries are extreme and the rest are sound. It changes the direction of the gradient, as the
    largest entries shrink most. ``ClipByGlobalNorm`` keeps the direction.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. Real and imaginary parts are clipped separately.

    Args:
        bound: largest absolute value, positive.
        lowest, highest: the interval, in place of ``bound``; it must contain 0, so that no zero entry moves.

    Raises:
        ValueError: when neither or both are given, or the interval is empty or without 0.

    Non-finite gradients: Inf becomes the bound; NaN stays.
    Cost: two passes; the first one is for ``Outcome.clipped`` alone. No sync, no state.

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
            require_number(self, above=0, bound=self.bound)
            return
        low, high = self.lowest, self.highest
        if low is None or high is None or not (-math.inf < low <= 0 <= high < math.inf and low < high):
            raise ValueError(f"lowest={low!r}, highest={high!r}: expected both, finite, with lowest <= 0 <= highest")

    def edit(self, gradients: Gradients) -> Outcome:
        """Clamp all entries."""
        return Outcome(clipped=gradients.any_over_shards([self._clamp_(values) for values in gradients.values]))

    def _clamp_(self, values: Tensor) -> Tensor:
        """Clamp, and return True if an entry was outside the interval."""
        if values.numel() == 0:  # an empty shard, which aminmax refuses
            return values.new_zeros((), dtype=torch.bool)
        # A bound beyond the dtype's range would become Inf in half precision, and Inf would pass the clamp.
        largest = torch.finfo(values.dtype).max
        wanted = (self.lowest or 0.0, self.highest or 0.0) if self.bound is None else (-self.bound, self.bound)
        low, high = (min(max(bound, -largest), largest) for bound in wanted)
        least, most = torch.aminmax(values)
        values.clamp_(low, high)
        return (least < low) | (most > high)


@dataclass(frozen=True)
class ClipByNorm(GradientEdit):
    r"""Scale each parameter's gradient so that its L2 norm is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min(1, c / \lVert g \rVert_2)

    Use it where a single layer explodes: a global clip would slow all layers down. The direction of each parameter's
    gradient is kept, but the direction of the whole gradient changes.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        max_norm: largest norm of one parameter's gradient, positive.

    Raises:
        ValueError: when ``max_norm`` is not a positive number.

    Non-finite gradients: a gradient that contains NaN or Inf is not changed; the others are clipped.
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
        require_number(self, above=0, max_norm=self.max_norm)

    def edit(self, gradients: Gradients) -> Outcome:
        """Scale the gradients whose norm is above the bound."""
        coefficients = clip_coefficients(gradients.norms(), self.max_norm)
        gradients.scale_each_(coefficients)
        return Outcome(clipped=(coefficients < 1).any())


@dataclass(frozen=True)
class ClipByGlobalNorm(GradientEdit):
    r"""Scale all gradients together so that their p-norm, as one vector, is at most ``max_norm``.

    .. math:: g \leftarrow g \cdot \min(1, c / \lVert (g_1, \dots, g_n) \rVert_p)

    Try it first against exploding gradients; it is the usual clip for recurrent networks and transformers. The
    direction is kept. If it clips most steps, it acts as a lower learning rate: lower the learning rate instead.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        max_norm: largest norm, positive.
        p: order of the norm, above 0; ``math.inf`` means the largest absolute value of a real or imaginary part.

    Raises:
        ValueError: when ``max_norm`` or ``p`` is not positive.

    Non-finite gradients: nothing is changed. torch's function sets every other gradient to 0 for one Inf and to NaN for
    one NaN, which hides where it began. Put ``SkipNonFinite`` before this clip to skip such a step.
    Cost: one fused norm pass and one fused multiplication, as in torch; no sync, no state. Unlike in torch, a finite
    gradient of 1e20 is clipped and not set to 0. Orders other than 2 read the gradients in float64.

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
        require_number(self, above=0, max_norm=self.max_norm)
        if self.p != math.inf:
            require_number(self, above=0, p=self.p)

    def edit(self, gradients: Gradients) -> Outcome:
        """Scale all gradients by one coefficient."""
        return clip_all(gradients, gradients.total_norm(self.p), self.max_norm)


def clip_all(gradients: Gradients, norm: Tensor, bound: Tensor | float) -> Outcome:
    """Scale all gradients together, so that their ``norm`` is at most ``bound``."""
    coefficient = clip_coefficients(norm, bound)
    gradients.scale_(coefficient)
    return Outcome(clipped=coefficient < 1, coefficient=coefficient)


def clip_coefficients(norms: Tensor, bounds: Tensor | float) -> Tensor:
    """Return the factors that bring each norm down to its bound; 1 for a norm that is within it or not finite.

    Example:
        >>> clip_coefficients(torch.tensor([4.0, 0.5, float("inf")]), 1.0)
        tensor([0.2500, 1.0000, 1.0000])
    """
    # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm against a division by 0. A norm above a bound is never 0, so
    # it is not needed here: a bound of 1e-6 is met too, and a second clip changes nothing.
    return torch.where((norms > bounds) & norms.isfinite(), bounds / norms, 1.0)
