"""What the initialization promises: how a block of weights and activation multiplies the gradient."""

from __future__ import annotations

import math

from torch import nn

from gradwatch.probe.layers import find_layers
from gradwatch.records import Snapshot

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_ACROSS_UNITS = (nn.Softmax, nn.LogSoftmax, nn.Softmin)  # no function of one unit: there is no slope to speak of


def chi_of(module: nn.Module, snapshot: Snapshot) -> dict[str, float]:
    """Activation -> E[phi'^2] times the variance sigma_w^2 of the weights before it, times their fan-in.

    E[phi'^2] is measured: it is the square of the activation's gain.

    Args:
        module: whose weights they are.
        snapshot: the pass.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = nn.init.eye_(model[0].weight)
        >>> chi_of(model, Snapshot(0, ("0", "1"), kinds=("Linear", "ReLU"), gain=[1.0, 0.5]))
        {'1': 0.25}

    References:
        Schoenholz, Gilmer, Ganguli, Sohl-Dickstein: Deep Information Propagation, 2017, https://arxiv.org/abs/1611.01232
    """
    layers, chi, variance = find_layers(module), {}, math.nan
    for name, gain in zip(snapshot.layers, snapshot.gain.tolist(), strict=True):
        layer = layers.get(name)
        if isinstance(layer, _WEIGHTED):
            weight = layer.weight.detach()
            variance = float(weight.double().square().sum() / len(weight))
        elif layer is not None and any(True for _ in layer.parameters(recurse=False)):
            variance = math.nan  # a normalization between them makes the product meaningless
        elif math.isfinite(gain) and not math.isnan(variance) and not isinstance(layer, _ACROSS_UNITS):
            chi[name] = gain**2 * variance
            variance = math.nan
    return chi


def in_words(chi: dict[str, float]) -> str:
    """The values and what they promise, in a sentence.

    Example:
        >>> in_words({"1": 0.1, "3": 0.1})
        'chi (1 keeps the gradient): 0.1 in 2 activations; together they multiply its size by 0.1.'
    """
    low, high = f"{min(chi.values()):.2g}", f"{max(chi.values()):.2g}"
    span = low if low == high else f"{low} to {high}"
    together = math.exp(sum(math.log(max(value, 1e-300)) for value in chi.values()) / 2)
    count = f"{len(chi)} activation{'s' * (len(chi) != 1)}"
    return f"chi (1 keeps the gradient): {span} in {count}; together they multiply its size by {together:.2g}."
