"""Transforms that subtract a gradient's mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.checks import require_number
from gradwatch.probe.shards import over_shards
from gradwatch.transforms.adaptive import units
from gradwatch.transforms.gradients import Gradients, apply_exactly_, wide_dtype
from gradwatch.transforms.transform import GradientEdit, Transform


@dataclass(frozen=True)
class Standardize(GradientEdit):
    r"""Subtract each gradient's mean and divide by its standard deviation (ZNorm).

    .. math:: g \leftarrow \frac{g - \operatorname{mean}(g)}{\operatorname{std}(g) + \epsilon}

    Use it against gradients that vanish over depth: the entries of every layer get a standard deviation of 1. It keeps
    neither direction nor length, so tune the learning rate again; it will be smaller by orders of magnitude. A constant
    gradient becomes 0.

    A gradient of one entry is not changed: minus its mean it would be 0, and a single bias could never learn.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. The standard deviation is that of the
    population (divided by n). A complex gradient has a complex mean and a real standard deviation.

    Args:
        eps: added to the standard deviation, positive.

    Raises:
        ValueError: when ``eps`` is not positive.
        TypeError: for a sparse gradient, as subtracting the mean would fill the entries that it does not store.

    Non-finite gradients: a gradient that contains NaN or Inf is not changed; the others are standardized.
    Cost: three passes over the gradients, two small operations a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([1e-7, 3e-7])
        >>> Standardize(eps=1e-12)({"weight": weight})
        >>> weight.grad
        tensor([-1.0000,  1.0000])

    References: Yun, ZNorm: Z-Score Gradient Normalization for Deep Neural Networks, 2024,
    https://arxiv.org/abs/2408.01215.
    """

    eps: float = 1e-10

    def __post_init__(self) -> None:
        require_number(self, above=0, eps=self.eps)

    def edit(self, gradients: Gradients) -> None:
        """Subtract the mean, then divide by the standard deviation."""
        refuse_sparse(gradients, self)
        sizes = [grad.numel() for grad in gradients.grads]
        norms = gradients.norms()
        usable = torch.stack([norm.isfinite() & (size > 1) for norm, size in zip(norms.unbind(), sizes, strict=True)])
        means = [mean / size for mean, size in zip(_sums(gradients).unbind(), sizes, strict=True)]
        for values, grad, mean, use in zip(gradients.values, gradients.grads, means, usable.unbind(), strict=True):
            shift = torch.where(use, mean if grad.is_complex() else mean[0], 0.0)
            apply_exactly_(Tensor.sub_, values, shift.to(values.device, non_blocking=True))
        # Without a mean, the norm is the standard deviation times the root of n. Measured again: the difference of the
        # mean square and the squared mean would lose all digits where the mean is large.
        deviations = [norm / size**0.5 for norm, size in zip(gradients.norms().unbind(), sizes, strict=True)]
        gradients.scale_each_(torch.where(usable, 1 / (torch.stack(deviations) + self.eps), 1.0))


def _sums(gradients: Gradients) -> Tensor:
    """Return each gradient's sum as real and imaginary part, over all shards."""
    sums = []
    for values, grad in zip(gradients.values, gradients.grads, strict=True):
        parts = values if grad.is_complex() else values.unsqueeze(-1)
        total = parts.reshape(-1, parts.shape[-1]).sum(0, dtype=wide_dtype(values))
        sums.append(total.expand(2).to(gradients.home, non_blocking=True))
    return over_shards(torch.stack(sums), gradients.grads)


def refuse_sparse(gradients: Gradients, transform: Transform) -> None:
    """Raise a TypeError for a sparse gradient, with its name and two ways out."""
    for name, grad in zip(gradients.names, gradients.grads, strict=True):
        if grad.layout is not torch.strided:
            raise TypeError(
                f"{transform!r} would fill the sparse gradient of {name!r}; exclude that parameter with "
                "Only(pattern, transform), or make its gradient dense (nn.Embedding(..., sparse=False))"
            )


@dataclass(frozen=True)
class Centralize(GradientEdit):
    r"""Subtract the mean of each output unit's gradient, in weights of two or more dimensions.

    .. math:: g_u \leftarrow g_u - \operatorname{mean}(g_u)

    Use it for convolutional networks, as a mild regularizer: each unit's weights keep their mean. It never makes a norm
    larger. Vectors (biases, scales of normalization layers) and scalars are not changed, nor are units of a single
    entry, which would become 0.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. Sparse: the stored rows, which is exact, as the
    mean of the others is 0.

    Raises:
        TypeError: when a sparse gradient stores single entries instead of rows.

    Non-finite gradients: a unit that contains NaN or Inf is not changed; the others are centralized.
    Cost: one float64 sum and one subtraction a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> weight.grad = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
        >>> Centralize()({"weight": weight})
        >>> weight.grad
        tensor([[-1.,  1.],
                [ 0.,  0.]])

    References: Yong, Huang, Hua, Zhang, Gradient Centralization: A New Optimization Technique for Deep Neural Networks,
    2020, https://arxiv.org/abs/2004.01461.
    """

    def edit(self, gradients: Gradients) -> None:
        """Subtract the mean of each unit."""
        for unit in units(gradients):
            if unit.grad.ndim > 1 and unit.grad.shape[1:].numel() > 1:
                means = unit.means()
                apply_exactly_(Tensor.sub_, unit.values, torch.where(means.isfinite(), means, 0.0))
