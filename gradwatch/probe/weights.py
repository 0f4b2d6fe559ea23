"""What a layer's weights alone do to the size of a gradient, from their norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from gradwatch.probe.modules import own_parameters
from gradwatch.probe.terms import Indices
from gradwatch.records import Array

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def inputs_of(module: nn.Module) -> int | None:
    """Over how many inputs a layer spreads the gradient's energy, in units of its outputs; None for other modules.

    With independent weights, the energy of the gradient at the input is that at the output times the mean square of
    the weights that one output sees. A convolution has its outputs only at every stride-th place.

    Example:
        >>> inputs_of(nn.Linear(64, 10)), inputs_of(nn.Conv2d(8, 16, 3, stride=2)), inputs_of(nn.ReLU())
        (64, 32, None)
    """
    own = module.__dict__  # a class of the user's may lack these, or compute them
    if isinstance(module, nn.Linear):
        return _as_count(own.get("in_features"))
    if isinstance(module, _TRANSPOSED):
        return _as_count(own.get("in_channels"))
    channels, stride = _as_count(own.get("in_channels")), own.get("stride")
    if isinstance(module, _CONVOLUTIONS) and channels and isinstance(stride, tuple):
        return channels * math.prod(stride)
    return None


def _as_count(value: object) -> int | None:
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class WeightGains:
    """Places of the layers and of their weights, and over how many inputs each spreads the gradient."""

    layers: Indices
    params: Indices
    inputs: Array

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], params: Mapping[int, int]) -> WeightGains:
        """Those of a model.

        Args:
            modules: the layers by name.
            params: the places of the parameters by their ids.
        """
        found = []
        for layer, module in enumerate(modules.values()):
            weight = own_parameters(module).get("weight")  # one that is computed is not to be computed once more
            if weight is not None and id(weight) in params and (inputs := inputs_of(module)) is not None:
                found.append((layer, params[id(weight)], inputs))
        layers, weights, spread = np.array(found, np.intp).reshape(-1, 3).T
        return cls(layers, weights, spread.astype(np.float64))

    def gains(self, squares: Array, count: int) -> Array:
        """By what each layer's weights multiply the gradient's RMS; NaN for a layer without such weights.

        Args:
            squares: sums of the squares of the parameters.
            count: of layers.
        """
        gains = np.full(count, np.nan)
        gains[self.layers] = np.sqrt(squares[self.params] / self.inputs)
        return gains
