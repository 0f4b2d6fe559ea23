"""Transforms that set gradients to a chosen norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.checks import require_number
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit


@dataclass(frozen=True)
class NormalizeByGlobalNorm(GradientEdit):
    r"""Scale all gradients together so that their L2 norm, as one vector, is ``target``.

    .. math:: g \leftarrow g \cdot \frac{c}{\max(\lVert (g_1, \dots, g_n) \rVert_2, \epsilon)}

    Use it with plain SGD where the gradient is too small to move the weights, or varies by orders of magnitude: the
    learning rate alone then sets the length of a step. The direction is kept. Steps no longer get smaller near a
    minimum, so decay the learning rate. Adam mostly undoes it, as its steps do not depend on the gradient's scale.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        target: the new norm, positive.
        eps: lower limit of the norm in the division, so that rounding noise is not amplified; positive.

    Raises:
        ValueError: when a setting is not positive.

    Non-finite gradients: nothing is changed.
    Cost: one fused norm pass and one fused multiplication. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3e-8, 4e-8])
        >>> NormalizeByGlobalNorm()({"weight": weight})
        >>> weight.grad
        tensor([0.6000, 0.8000])

    References: Nesterov, Introductory Lectures on Convex Optimization, 2004, section 3.2.3 (a step of given length).
    """

    target: float = 1.0
    eps: float = 1e-12

    def __post_init__(self) -> None:
        require_number(self, above=0, target=self.target, eps=self.eps)

    def edit(self, gradients: Gradients) -> None:
        """Scale all gradients by one coefficient."""
        gradients.scale_(_coefficients(gradients.total_norm(), self.target, self.eps))


@dataclass(frozen=True)
class NormalizeByNorm(GradientEdit):
    r"""Scale each parameter's gradient, or each layer's, so that its L2 norm is ``target``.

    .. math:: g \leftarrow g \cdot \frac{c}{\max(\lVert g \rVert_2, \epsilon)}

    Use it where gradients vanish over depth: every layer then takes a step of the same length. It keeps the direction
    of each parameter's (or layer's) gradient, not that of the whole. A layer that has converged keeps moving.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        target: the new norm, positive.
        by_layer: normalize the parameters of one layer (weight and bias) together.
        eps: lower limit of the norm in the division, so that rounding noise is not amplified; positive.

    Raises:
        ValueError: when a setting is not positive.

    Non-finite gradients: a gradient (or layer) that contains NaN or Inf is not changed; the others are scaled.
    Cost: one fused norm pass, one multiplication a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3e-8, 4e-8])
        >>> NormalizeByNorm(target=2.0)({"weight": weight})
        >>> weight.grad
        tensor([1.2000, 1.6000])

    References: Yu, Lin, Salakhutdinov, Carbonell, Block-Normalized Gradient Method, 2017,
    https://arxiv.org/abs/1707.04822.
    """

    target: float = 1.0
    by_layer: bool = False
    eps: float = 1e-12

    def __post_init__(self) -> None:
        require_number(self, above=0, target=self.target, eps=self.eps)

    def edit(self, gradients: Gradients) -> None:
        """Scale each gradient by its own coefficient."""
        norms = gradients.norms()
        norms = _layer_norms(gradients.names, norms) if self.by_layer else norms
        gradients.scale_each_(_coefficients(norms, self.target, self.eps))


def _layer_norms(names: list[str], norms: Tensor) -> Tensor:
    """Return each parameter's layer norm, over the parameters whose names agree up to the last dot."""
    layers = [name.rpartition(".")[0] for name in names]
    members: dict[str, list[Tensor]] = {}
    for layer, norm in zip(layers, norms.unbind(), strict=True):
        members.setdefault(layer, []).append(norm)
    wholes = {layer: torch.linalg.vector_norm(torch.stack(found)) for layer, found in members.items()}
    return torch.stack([wholes[layer] for layer in layers])


@dataclass(frozen=True)
class ScaleByTrustRatio(GradientEdit):
    r"""Scale each parameter's gradient to a fraction of the norm of its weights (LARS).

    .. math:: g \leftarrow g \cdot \eta \frac{\lVert w \rVert_2}{\lVert g \rVert_2}

    Use it with SGD at large batches: each step then moves each layer by the same fraction of its size. If a gradient or
    its weights are all zero, it is not changed, so that a weight that starts at 0 can grow. Biases and the parameters
    of normalization layers are usually excluded, with ``Only``. Adam mostly undoes it.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        coefficient: the fraction, positive; 0.001 in the paper, where the learning rate is above 1.
        eps: lower limit of the gradient's norm in the division; positive.

    Raises:
        ValueError: when a setting is not positive.

    Non-finite gradients: a gradient that contains NaN or Inf is not changed; the others are scaled.
    Cost: two fused norm passes (gradients, weights), one multiplication a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight.grad = torch.tensor([0.0, 1e-6])
        >>> ScaleByTrustRatio(0.1)({"weight": weight})
        >>> weight.grad
        tensor([0.0000, 0.5000])

    References: You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    https://arxiv.org/abs/1708.03888. There the denominator contains the weight decay; here the optimizer adds it later.
    """

    coefficient: float = 1.0
    eps: float = 1e-12
    parameters_only = True

    def __post_init__(self) -> None:
        require_number(self, above=0, coefficient=self.coefficient, eps=self.eps)

    def edit(self, gradients: Gradients) -> None:
        """Scale each gradient by its own coefficient."""
        norms, weights = gradients.norms(), gradients.weight_norms()
        usable = (norms > 0) & (weights > 0) & weights.isfinite()
        gradients.scale_each_(torch.where(usable, _coefficients(norms, weights * self.coefficient, self.eps), 1.0))


def _coefficients(norms: Tensor, targets: Tensor | float, eps: float) -> Tensor:
    """Return the factors that bring each norm to its target; 1 for a norm that is not finite."""
    return torch.where(norms.isfinite(), targets / norms.clamp(min=eps), 1.0)
