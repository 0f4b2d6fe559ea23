r"""What an activation does to signal and gradient of a wide random network.

For pre-activations :math:`z \sim N(0, q)` and weights of variance :math:`\sigma_w^2 / n`, one layer and its activation
:math:`\phi` multiply the mean square of the gradient by :math:`\chi = \sigma_w^2 E[\phi'(z)^2]`, and the next layer's
pre-activations have :math:`q = \sigma_w^2 E[\phi(z)^2]`.

References: Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli, 2016, https://arxiv.org/abs/1606.05340; Schoenholz, Gilmer,
Ganguli, Sohl-Dickstein, Deep information propagation, 2017, https://arxiv.org/abs/1611.01232.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import activation_name, is_softmax, is_weighted, weight_outputs_first
from gradwatch.records import Snapshot

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
    made = getattr(nn, activation_name(kind) or kind, nn.Identity)
    try:
        return made() if issubclass(made, nn.Module) else nn.Identity()
    except TypeError:  # no activation: it takes sizes
        return nn.Identity()


@dataclass(frozen=True)
class Spread:
    """Variance of a layer's weights times the terms of a sum of them.

    Attributes:
        forward: times the fan-in: how it multiplies the signal's energy.
        smaller: times the smaller of fan-in and fan-out: large only where the weights are, whatever they were made for.
    """

    forward: float = math.nan
    smaller: float = math.nan


def spreads(layers: Mapping[str, nn.Module]) -> dict[str, Spread]:
    """Layer -> the spread of its weights; unknown (NaN) for layers that hide what is before them, such as a norm.

    Activations, which let it through, are left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = nn.init.eye_(model[0].weight)
        >>> spreads(dict(model.named_children()))
        {'0': Spread(forward=1.0, smaller=1.0)}
    """
    known = {}
    for name, layer in layers.items():
        if is_weighted(layer):
            known[name] = _spread(weight_outputs_first(layer))
        elif is_softmax(layer) or any(True for _ in layer.parameters(recurse=False)):
            known[name] = Spread()
    return known


def _spread(weight: Tensor) -> Spread:
    energy = float(weight.double().square().sum())
    return Spread(energy / len(weight), energy / max(weight.shape[:2]))


def chi_of(snapshot: Snapshot, known: Mapping[str, Spread], *, smaller: bool = False) -> dict[str, float]:
    """Activation -> E[phi'^2] times sigma_w^2, the spread of the weights before it.

    E[phi'^2] is measured: it is the square of the activation's gain.

    Args:
        snapshot: the pass.
        known: of :func:`spreads`.
        smaller: take the smaller spread.

    Example:
        >>> snapshot = Snapshot(0, ("0", "1"), kinds=("Linear", "ReLU"), gain=[1.0, 0.5])
        >>> chi_of(snapshot, {"0": Spread(1.0, 1.0)})
        {'1': 0.25}

    References:
        Schoenholz, Gilmer, Ganguli, Sohl-Dickstein: Deep Information Propagation, 2017, https://arxiv.org/abs/1611.01232
    """
    chi, before = {}, Spread()
    for name, gain in zip(snapshot.layers, snapshot.gain.tolist(), strict=True):
        if name in known:
            before = known[name]
            continue
        value = gain**2 * (before.smaller if smaller else before.forward)
        if math.isfinite(value):
            chi[name] = value
        before = Spread()
    return chi


def typical(values: Iterable[float]) -> float:
    """Geometric mean.

    Example:
        >>> typical([1.0, 4.0])
        2.0
    """
    logs = [math.log(max(value, 1e-300)) for value in values]
    return math.exp(sum(logs) / len(logs))


def in_words(chi: Mapping[str, float]) -> str:
    """The values and what they promise, in a sentence.

    Example:
        >>> in_words({"1": 0.1, "3": 0.1})
        'chi (1 keeps the gradient): 0.1 in 2 activations; together they multiply its size by 0.1.'
    """
    low, high = f"{min(chi.values()):.2g}", f"{max(chi.values()):.2g}"
    span = low if low == high else f"{low} to {high}"
    together = typical(chi.values()) ** (len(chi) / 2)
    count = f"{len(chi)} activation{'s' * (len(chi) != 1)}"
    return f"chi (1 keeps the gradient): {span} in {count}; together they multiply its size by {together:.2g}."
