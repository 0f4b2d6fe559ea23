r"""Mean-field theory of a wide random network: chi, the factor by which a layer changes the gradient's energy.

A layer has weights of variance :math:`\sigma_w^2 / n` for a fan-in of :math:`n`, an activation :math:`\phi`, and
pre-activations :math:`z \sim N(0, q)`. With its activation it multiplies the mean square of the gradient by
:math:`\chi = \sigma_w^2 E[\phi'(z)^2]`, and the next layer's pre-activations have :math:`q = \sigma_w^2 E[\phi(z)^2]`.
At :math:`\chi = 1` the gradient keeps its size. The gain of a layer is :math:`\sqrt\chi`. The first functions compute
:math:`E[\phi'^2]` by integration; :func:`chi_of` takes it as measured in a pass.

References: Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli, 2016, https://arxiv.org/abs/1606.05340; Schoenholz, Gilmer,
Ganguli, Sohl-Dickstein, Deep information propagation, 2017, https://arxiv.org/abs/1611.01232.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import activation_name, is_softmax, is_weighted, weight_outputs_first
from gradwatch.records import Snapshot

_NODES = 800  # an even number: none lies at 0, where a ReLU has no slope


@dataclass(frozen=True)
class Moments:
    """Expectations over z of phi(z), phi(z)^2 and phi'(z)^2."""

    mean: float
    square: float
    slope_square: float


@lru_cache(maxsize=4096)
def moments(kind: str, q: float = 1.0) -> Moments:
    """Return the moments of an activation by its class name in ``torch.nn``; those of the identity for other names.

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
    return Moments(*[(weights * part).sum().item() for part in (outputs, outputs.square(), slopes.square())])


def critical_gain(kind: str) -> float:
    r"""Return the :math:`\sigma_w` at which :math:`\chi = 1` for :math:`q = 1`: the root of 2 for a ReLU, as He has it.

    Example:
        >>> [round(critical_gain(kind), 2) for kind in ("ReLU", "SELU", "Tanh", "Identity")]
        [1.41, 0.97, 1.47, 1.0]
    """
    return 1 / math.sqrt(moments(kind).slope_square)


def gain_at_depth(kind: str, sigma: float, depth: int, input_square: float = 1.0) -> float:
    r"""Return the mean gain of ``depth`` layers with :math:`\sigma_w` = ``sigma``; ``q`` changes from layer to layer.

    Example:
        >>> round(gain_at_depth("ReLU", 2**0.5, 10), 3), gain_at_depth("Sigmoid", critical_gain("Sigmoid"), 10) < 0.9
        (1.0, True)
    """
    q, chi = sigma**2 * input_square, []
    for _ in range(max(depth, 1)):
        known = moments(kind, float(f"{min(max(q, 1e-12), 1e12):.3g}"))  # rounded, so that the cache is hit
        chi.append(max(sigma**2 * known.slope_square, 1e-30))
        q = sigma**2 * known.square
    return math.sqrt(geometric_mean(chi))


def normalized_gain(kind: str, *, centered: bool) -> float:
    r"""Return the gain of a layer with a normalization layer before its activation.

    The norm divides by the deviation of the pre-activations, so that the weights cancel:
    :math:`\sqrt{E[\phi'^2] / E[\phi^2]}`. A norm over the batch (``centered``) also subtracts what all samples share,
    the activation's mean; a norm over the features does not.

    Example:
        >>> [round(normalized_gain("Sigmoid", centered=centered), 2) for centered in (True, False)]
        [1.02, 0.39]
    """
    known = moments(kind)
    spread = known.square - known.mean**2 if centered else known.square
    return math.sqrt(known.slope_square / max(spread, 1e-12))


def finite_width_deviation(widths: list[int]) -> float:
    """Return the standard deviation of the gradient's log10 over random ReLU networks of these widths.

    Example:
        >>> round(finite_width_deviation([10] * 20), 2)
        0.69

    References: Hanin, 2018, https://arxiv.org/abs/1801.03744: the variance of the squared norm's log is 5 times the sum
    of 1 / width; the log of the norm is half of it.
    """
    return 0.5 * math.sqrt(5 * sum(1 / max(width, 1) for width in widths)) / math.log(10)


@dataclass(frozen=True)
class Spread:
    """Two estimates of sigma_w^2, from the weights of a layer; NaN if unknown.

    Attributes:
        forward: variance of the weights times the fan-in.
        smaller: variance times the smaller of fan-in and fan-out: large only if the weights are large for both passes.
    """

    forward: float = math.nan
    smaller: float = math.nan


def spreads(layers: Mapping[str, nn.Module]) -> dict[str, Spread]:
    """Return the spread of each layer's weights; NaN for a layer that has other parameters or mixes units.

    Activations have no entry.

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


def chi_of(snapshot: Snapshot, known: Mapping[str, Spread], *, smaller: bool = False) -> dict[str, float]:
    """Return chi of each activation, from its measured gain and the weights of the layer before it.

    Args:
        snapshot: the pass; an activation's squared gain is its E[phi'^2].
        known: result of :func:`spreads`.
        smaller: use the smaller spread.

    Example:
        >>> snapshot = Snapshot(0, ("0", "1"), kinds=("Linear", "ReLU"), gain=[1.0, 0.5])
        >>> chi_of(snapshot, {"0": Spread(1.0, 1.0)})
        {'1': 0.25}
    """
    chi, before = {}, Spread()
    for name, gain in zip(snapshot.layers, snapshot.gain.tolist(), strict=True):
        if name in known:
            before = known[name]
            continue
        value = gain**2 * (before.smaller if smaller else before.forward)
        if math.isfinite(value):
            chi[name] = value
        before = Spread()  # a second activation in a row has no weights of its own
    return chi


def chi_in_words(chi: Mapping[str, float]) -> str:
    """Return a sentence with the range of chi and its product, as a factor of the gradient's norm.

    Example:
        >>> chi_in_words({"1": 0.1, "3": 0.1})
        'chi (1 keeps the gradient): 0.1 in 2 activations; together they multiply its size by 0.1.'
    """
    low, high = f"{min(chi.values()):.2g}", f"{max(chi.values()):.2g}"
    span = low if low == high else f"{low} to {high}"
    together = geometric_mean(chi.values()) ** (len(chi) / 2)
    count = f"{len(chi)} activation{'s' * (len(chi) != 1)}"
    return f"chi (1 keeps the gradient): {span} in {count}; together they multiply its size by {together:.2g}."


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean.

    Example:
        >>> geometric_mean([1.0, 4.0])
        2.0
    """
    logs = [math.log(max(value, 1e-300)) for value in values]
    return math.exp(sum(logs) / len(logs))


def _function(kind: str) -> nn.Module:
    made = getattr(nn, activation_name(kind) or kind, nn.Identity)
    try:
        return made() if issubclass(made, nn.Module) else nn.Identity()
    except TypeError:  # no activation: its constructor needs sizes
        return nn.Identity()


def _spread(weight: Tensor) -> Spread:
    energy = float(weight.double().square().sum())
    return Spread(energy / len(weight), energy / max(weight.shape[:2]))
