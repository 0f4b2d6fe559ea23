"""A clip relative to the weights, unit by unit, and the split of a gradient into output units."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.checks import require_number, require_patterns
from gradwatch.probe.layers import check_patterns, matches
from gradwatch.probe.shards import is_sharded, over_shards
from gradwatch.transforms.clip import clip_coefficients
from gradwatch.transforms.gradients import Gradients, apply_exactly_, entries, wide_dtype
from gradwatch.transforms.transform import GradientEdit, Outcome, Params, StepContext

_HUGE = 1e18  # from this norm on, a float32 sum of squares may overflow


@dataclass(frozen=True)
class AdaptiveClip(GradientEdit):
    r"""Scale each output unit's gradient to at most a fraction of the norm of that unit's weights (AGC).

    .. math:: g_u \leftarrow g_u \cdot \min\Bigl(1, \lambda \frac{\max(\lVert w_u \rVert, \epsilon)}
        {\lVert g_u \rVert}\Bigr)

    A unit is an index of a weight's dimension 0: a row, a filter; a vector or scalar is one unit. Use it to train deep
    networks without normalization layers at a high learning rate. Exclude the last linear layer, as the paper does.
    With too small a factor nothing learns: 0.01 suits batches of 1024 and more; larger batches need a smaller one.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. Sparse: the stored rows.

    Args:
        clip_factor: the fraction, positive.
        eps: lower limit of the norm of a unit's weights, so that weights that start at 0 can grow; positive.
        exclude: shell patterns of the parameters not to clip, such as ``head.*``.

    Raises:
        ValueError: when a number is not positive, or a pattern matches no parameter.
        TypeError: when a sparse gradient stores single entries instead of rows.

    Non-finite gradients: a unit that contains NaN or Inf is not changed; the others are clipped.
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
        require_number(self, above=0, clip_factor=self.clip_factor, eps=self.eps)
        require_patterns(self, exclude=self.exclude)
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def check(self, names: Collection[str]) -> None:
        """Raise a ValueError if a pattern of ``exclude`` matches no parameter."""
        check_patterns(self.exclude, names, "parameter")

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Clip all but the excluded parameters."""
        if context is None:  # a plain loop: no callback has checked the patterns before
            self.check(params)
        return super().__call__({name: p for name, p in params.items() if not matches(name, self.exclude)}, context)

    def edit(self, gradients: Gradients) -> Outcome:
        """Scale unit by unit."""
        return Outcome(clipped=gradients.any_over_shards([self._clip(unit) for unit in units(gradients)]))

    def _clip(self, unit: Units) -> Tensor:
        bounds = unit.norms(unit.weight).clamp(min=self.eps) * self.clip_factor
        coefficients = clip_coefficients(unit.norms(unit.values), bounds)
        apply_exactly_(Tensor.mul_, unit.values, coefficients)
        return (coefficients < 1).any()


@dataclass(frozen=True)
class Units:
    """A gradient and its weight as output units: rows of a Linear or an embedding, filters of a convolution.

    Attributes:
        values: its local entries; writing to them writes to the gradient.
        weight: the local entries of the weight; for a sparse gradient only the rows that it stores.
        dims: the dimensions of ``values`` within one unit; all of them for a vector or a scalar, which is one unit.
    """

    grad: Tensor
    values: Tensor
    weight: Tensor
    dims: tuple[int, ...]

    def norms(self, values: Tensor) -> Tensor:
        """Return the L2 norm of each unit of ``values``, the gradient's or the weight's, over all shards."""
        norms = _unit_norms(values, self.dims)
        if not is_sharded(self.grad):
            return norms
        return over_shards(norms.to(wide_dtype(norms)).square()[None], [self.grad], dims=self.dims)[0].sqrt()

    def means(self) -> Tensor:
        """Return the mean of each unit of the gradient, in float64; of a complex one, real and imaginary part."""
        dims = tuple(dim for dim in self.dims if dim < self.grad.ndim)
        sums = self.values.sum(dims, keepdim=True, dtype=wide_dtype(self.values))
        size = math.prod(self.grad.shape[dim] for dim in dims)
        return over_shards(sums[None], [self.grad], dims=dims)[0] / size


def _unit_norms(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    # On a CPU float64 is many times slower, and reading the result costs no sync. So it is used only after an overflow.
    if values.device.type == "cpu" and values.itemsize <= 4:
        norms: Tensor = torch.linalg.vector_norm(values, 2, dims, keepdim=True, dtype=torch.float32)
        if bool((norms.numpy() < _HUGE).all()):
            return norms
    wide: Tensor = torch.linalg.vector_norm(values, 2, dims, keepdim=True, dtype=wide_dtype(values))
    return wide


def units(gradients: Gradients) -> list[Units]:
    """Return each gradient split into its units; a TypeError for a sparse one that does not store whole rows.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> layer.weight.grad = torch.ones(2, 3)
        >>> [unit.norms(unit.values).shape for unit in units(Gradients(dict(layer.named_parameters())))]
        [torch.Size([2, 1])]
    """
    split = []
    rows = zip(gradients.names, gradients.params, gradients.grads, gradients.values, strict=True)
    for name, param, grad, values in rows:
        weight = entries(param)
        if grad.layout is not torch.strided and grad.ndim > 1:
            if not grad.is_sparse or grad.sparse_dim() != 1:
                raise TypeError(
                    f"the gradient of {name!r} is sparse ({grad.layout}) and stores single entries, not whole rows; "
                    "a transform of rows needs all entries of a row: exclude the parameter, or make its gradient dense"
                )
            weight = weight[grad.indices()[0]]
        split.append(Units(grad, values, weight, tuple(range(1 if grad.ndim > 1 else 0, values.ndim))))
    return split
