r"""What an activation does to signal and gradient of a wide random network.

For pre-activations :math:`z \sim N(0, q)` and weights of variance :math:`\sigma_w^2 / n`, one layer and its activation
:math:`\phi` multiply the mean square of the gradient by :math:`\chi = \sigma_w^2 E[\phi'(z)^2]`, and the next layer's
pre-activations have :math:`q = \sigma_w^2 E[\phi(z)^2]`.

References: Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli, 2016, https://arxiv.org/abs/1606.05340; Schoenholz, Gilmer,
Ganguli, Sohl-Dickstein, Deep information propagation, 2017, https://arxiv.org/abs/1611.01232.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

_NODES = 800  # an even number: none lies at 0, where a ReLU has no slope


@dataclass(frozen=True)
class Moments:
    """Means over z from N(0, q): of the activation, of its square, and of its slope's square."""

    mean: float
    square: float
    slope_square: float


@lru_cache(maxsize=4096)
def moments(kind: str, q: float = 1.0) -> Moments:
    """The moments of an activation of torch, by its class's name; of the identity where there is no such class.

    Example:
        >>> round(moments("ReLU").slope_square, 3), round(moments("Sigmoid").slope_square, 3)
        (0.5, 0.045)
    """
    z = torch.linspace(-8, 8, _NODES, dtype=torch.float64)
    weights = torch.exp(-z.square() / 2)
    weights = weights / weights.sum()
    inputs = (z * math.sqrt(q)).requires_grad_()
    with torch.enable_grad():
        outputs = _function(kind)(inputs)
        (slopes,) = torch.autograd.grad(outputs.sum(), inputs)
    values = [(weights * part).sum().item() for part in (outputs, outputs.square(), slopes.square())]
    return Moments(*values)


def critical_gain(kind: str) -> float:
    r"""The :math:`\sigma_w` at which :math:`\chi = 1` for pre-activations of variance 1; He's root of 2 for a ReLU.

    Example:
        >>> [round(critical_gain(kind), 2) for kind in ("ReLU", "SELU", "Tanh", "Identity")]
        [1.41, 0.97, 1.47, 1.0]
    """
    return 1 / math.sqrt(moments(kind).slope_square)


def gain_at_depth(kind: str, sigma: float, depth: int, input_square: float = 1.0) -> float:
    r"""Geometric mean of :math:`\sqrt\chi` over ``depth`` layers of weights :math:`\sigma_w`, as signals settle.

    Example:
        >>> round(gain_at_depth("ReLU", 2**0.5, 10), 3), gain_at_depth("Sigmoid", critical_gain("Sigmoid"), 10) < 0.9
        (1.0, True)
    """
    q, logs = sigma**2 * input_square, []
    for _ in range(max(depth, 1)):
        known = moments(kind, float(f"{min(max(q, 1e-12), 1e12):.3g}"))
        logs.append(0.5 * math.log(max(sigma**2 * known.slope_square, 1e-30)))
        q = sigma**2 * known.square
    return math.exp(float(np.mean(logs)))


def normalized_gain(kind: str, *, centered: bool) -> float:
    r"""The gain of a layer and its activation with a normalization layer between them.

    It divides by the deviation that the weights made, so that they drop out: :math:`\sqrt{E[\phi'^2] / E[\phi^2]}`.
    Over the batch (``centered``) the activation's mean is the same for all samples and is no part of the deviation;
    over the features it is.

    Example:
        >>> [round(normalized_gain("Sigmoid", centered=centered), 2) for centered in (True, False)]
        [1.02, 0.39]
    """
    known = moments(kind)
    spread = known.square - known.mean**2 if centered else known.square
    return math.sqrt(known.slope_square / max(spread, 1e-12))


def width_spread(widths: list[int]) -> float:
    """Deviation of the log10 of the gradient that finite widths alone make in a ReLU network.

    Example:
        >>> round(width_spread([10] * 20), 2)
        0.69

    References: Hanin, 2018, https://arxiv.org/abs/1801.03744: the log's variance grows as 5 times the sum of 1 / width;
    half of the log is that of the norm.
    """
    return 0.5 * math.sqrt(5 * sum(1 / max(width, 1) for width in widths)) / math.log(10)


def _function(kind: str) -> nn.Module:
    made = getattr(nn, kind, nn.Identity)
    try:
        return made() if issubclass(made, nn.Module) else nn.Identity()
    except TypeError:  # no activation: it takes sizes
        return nn.Identity()
