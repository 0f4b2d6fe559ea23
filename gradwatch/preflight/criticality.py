"""What the initialization promises: how a block of weights and activation multiplies the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gradwatch.probe.layers import find_layers
from gradwatch.records import Snapshot

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_ACROSS_UNITS = (nn.Softmax, nn.LogSoftmax, nn.Softmin)  # no function of one unit: there is no slope to speak of


@dataclass(frozen=True)
class Spread:
    """Variance of a layer's weights times the terms of a sum of them.

    Attributes:
        forward: times the fan-in: how it multiplies the signal's energy.
        smaller: times the smaller of fan-in and fan-out: large only where the weights are, whatever they were made for.
    """

    forward: float = math.nan
    smaller: float = math.nan


def spreads(module: nn.Module) -> dict[str, Spread]:
    """Layer -> the spread of its weights; unknown (NaN) for layers that hide what is before them, such as a norm.

    Activations, which let it through, are left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = nn.init.eye_(model[0].weight)
        >>> spreads(model)
        {'0': Spread(forward=1.0, smaller=1.0)}
    """
    known = {}
    for name, layer in find_layers(module).items():
        if isinstance(layer, _WEIGHTED):
            known[name] = _spread(layer.weight.detach())
        elif isinstance(layer, _ACROSS_UNITS) or any(True for _ in layer.parameters(recurse=False)):
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
