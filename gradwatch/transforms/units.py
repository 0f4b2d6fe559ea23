"""Output units of a parameter (a row of a linear layer, a filter of a convolution, a row of an embedding)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradwatch.probe.shards import is_sharded, over_shards
from gradwatch.transforms.gradients import Gradients, entries

_HUGE = 1e18  # a float32 sum of squares overflows from here on


@dataclass(frozen=True)
class Units:
    """A gradient and its weight, with dimension 0 counting units; a vector or a scalar is one unit.

    Attributes:
        name: of the parameter.
        grad: the gradient itself.
        values: its entries, to be written to.
        weight: the entries of the weight, those of the stored rows alone where the gradient is sparse.
        dims: what one unit spans, in ``values``.
    """

    name: str
    grad: Tensor
    values: Tensor
    weight: Tensor
    dims: tuple[int, ...]

    def norms(self, values: Tensor) -> Tensor:
        """L2 norm of each unit of ``values`` (those of the gradient or the weight)."""
        norms = _unit_norms(values, self.dims)
        if not is_sharded(self.grad):
            return norms
        return over_shards(norms.to(_wide(norms)).square()[None], [self.grad], dims=self.dims)[0].sqrt()

    def means(self) -> Tensor:
        """Mean of each unit of the gradient, in float64; the complex mean of a complex one."""
        dims = tuple(dim for dim in self.dims if dim < self.grad.ndim)
        sums = self.values.sum(dims, keepdim=True, dtype=_wide(self.values))
        size = math.prod(self.grad.shape[dim] for dim in dims)
        return over_shards(sums[None], [self.grad], dims=dims)[0] / size


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.device.type != "mps" else torch.float32


def _unit_norms(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    # As in the probe's norms: on a CPU float64 is many times slower and looking at the result is free.
    if values.device.type == "cpu" and values.itemsize <= 4:
        norms: Tensor = torch.linalg.vector_norm(values, 2, dims, keepdim=True, dtype=torch.float32)
        if bool((norms.numpy() < _HUGE).all()):
            return norms
    wide: Tensor = torch.linalg.vector_norm(values, 2, dims, keepdim=True, dtype=_wide(values))
    return wide


def units(gradients: Gradients) -> list[Units]:
    """Each gradient by its units.

    Raises:
        TypeError: for a sparse gradient that does not store whole rows.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> layer.weight.grad = torch.ones(2, 3)
        >>> [unit.norms(unit.values).shape for unit in units(Gradients(dict(layer.named_parameters())))]
        [torch.Size([2, 1])]
    """
    rows = zip(gradients.names, gradients.params, gradients.grads, gradients.values, strict=True)
    return [_units_of(name, param, grad, values) for name, param, grad, values in rows]


def _units_of(name: str, param: nn.Parameter, grad: Tensor, values: Tensor) -> Units:
    dims = tuple(range(1 if grad.ndim > 1 else 0, values.ndim))
    weight = entries(param)
    if grad.layout is not torch.strided and grad.ndim > 1:
        if not grad.is_sparse or grad.sparse_dim() != 1:
            raise TypeError(
                f"the gradient of {name!r} is sparse ({grad.layout}) and stores single entries, not whole rows; "
                "a transform that works on rows can't tell them: leave the parameter out, or make its gradient dense"
            )
        weight = weight[grad.indices()[0]]
    return Units(name, grad, values, weight, dims)
