"""Output units of a parameter (a row of a linear layer, a filter of a convolution, a row of an embedding)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradwatch.probe.layers import check_patterns, matches
from gradwatch.probe.shards import is_sharded, over_shards
from gradwatch.transforms.clip import check_number, shrinking
from gradwatch.transforms.gradients import Gradients, entries, scale_exactly_
from gradwatch.transforms.transform import GradientEdit, Outcome, Params, StepContext

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


@dataclass(frozen=True)
class AdaptiveClip(GradientEdit):
    r"""Scale each output unit's gradient to at most a share of the norm of that unit's weights (AGC).

    .. math:: g_u \leftarrow g_u \cdot \min\Bigl(1, \lambda \frac{\max(\lVert w_u \rVert, \epsilon)}
        {\lVert g_u \rVert}\Bigr)

    A unit is what stands along dimension 0 of a weight: a row, a filter; a vector or scalar is one unit. Use it to
    train deep networks without normalization layers at a high learning rate. Leave out the last linear layer, as the
    paper does. With too small a factor nothing learns: 0.01 suits batches of 1024 and more, larger ones want less.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. Sparse: the stored rows.

    Args:
        clip_factor: the share, positive.
        eps: least norm that a unit's weights count with, so that weights that start at 0 can grow; positive.
        exclude: shell patterns of the parameters to leave as they are, such as ``head.*``.

    Raises:
        ValueError: when a number is not positive, or a pattern matches no parameter.
        TypeError: when a gradient is sparse in single entries and not in rows.

    Non-finite gradients: a unit with NaN or Inf in it stays as it is; the others are clipped.
    Cost: about eight small operations a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 1))
        >>> weight.grad = torch.tensor([[1.0], [1e-3]])
        >>> outcome = AdaptiveClip(0.01)({"weight": weight})
        >>> weight.grad
        tensor([[0.0100],
                [0.0010]])

    References: Brock, De, Smith, Simonyan, High-Performance Large-Scale Image Recognition Without Normalization, 2021,
    https://arxiv.org/abs/2102.06171.
    """

    clip_factor: float = 0.01
    eps: float = 1e-3
    exclude: Sequence[str] = ()
    is_clip = True
    parameters_only = True

    def __post_init__(self) -> None:
        check_number("clip_factor", self.clip_factor, 0, above=True)
        check_number("eps", self.eps, 0, above=True)
        if isinstance(self.exclude, str):
            raise ValueError(f"exclude is {self.exclude!r}; expected a list of patterns, such as ({self.exclude!r},)")
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def check(self, names: Collection[str]) -> None:
        """Raise a ValueError where a pattern of ``exclude`` matches no parameter."""
        check_patterns(self.exclude, names, "parameter")

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Clip all but the excluded parameters."""
        if context is None:
            self.check(params)
        return super().__call__({name: p for name, p in params.items() if not matches(name, self.exclude)}, context)

    def edit(self, gradients: Gradients) -> Outcome:
        """Scale unit by unit."""
        clipped = [self._clip(unit).to(gradients.home, non_blocking=True) for unit in units(gradients)]
        return Outcome(clipped=(over_shards(torch.stack(clipped), gradients.grads, "max") > 0).any())

    def _clip(self, unit: Units) -> Tensor:
        bounds = unit.norms(unit.weight).clamp(min=self.eps) * self.clip_factor
        coefficients = shrinking(unit.norms(unit.values), bounds)
        scale_exactly_(unit.values, coefficients)
        return (coefficients < 1).any().to(torch.uint8)
