"""Transforms that give gradients a chosen norm, whatever it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.transforms.clip import check_number, stretching
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit


@dataclass(frozen=True)
class NormalizeByGlobalNorm(GradientEdit):
    r"""Scale all gradients together so that their L2 norm, as one vector, is ``target``.

    .. math:: g \leftarrow g \cdot \frac{c}{\max(\lVert (g_1, \dots, g_n) \rVert_2, \epsilon)}

    Use it with plain SGD where the gradient is so small that nothing moves, or changes its size by orders of magnitude:
    the learning rate alone then sets the length of a step. The direction is kept. It takes away that steps get smaller
    near a minimum, so let the learning rate decay. Adam undoes it for the most part, being blind to scale.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        target: the norm to have, positive.
        eps: norms under it count as it, so that rounding noise is not blown up; positive.

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
        check_number("target", self.target, 0, above=True)
        check_number("eps", self.eps, 0, above=True)

    def edit(self, gradients: Gradients) -> None:
        """Scale all by one number."""
        gradients.scale_(stretching(gradients.total_norm(), self.target, self.eps))


@dataclass(frozen=True)
class NormalizeByNorm(GradientEdit):
    r"""Scale each parameter's gradient, or each layer's, so that its L2 norm is ``target``.

    .. math:: g \leftarrow g \cdot \frac{c}{\max(\lVert g \rVert_2, \epsilon)}

    Use it where gradients vanish over depth: every layer then takes a step of the same length. The direction of the
    whole is not kept, only that of each parameter (or layer), and a layer that should be at rest is kept moving.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        target: the norm to have, positive.
        by_layer: take the parameters of one layer (weight and bias) together.
        eps: norms under it count as it, so that rounding noise is not blown up; positive.

    Raises:
        ValueError: when a setting is not positive.

    Non-finite gradients: a gradient (or layer) with NaN or Inf in it stays as it is; the others are scaled.
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
        check_number("target", self.target, 0, above=True)
        check_number("eps", self.eps, 0, above=True)

    def edit(self, gradients: Gradients) -> None:
        """Scale each by its own number."""
        norms = gradients.norms()
        norms = _layer_norms(gradients.names, norms) if self.by_layer else norms
        gradients.scale_each_(stretching(norms, self.target, self.eps))


def _layer_norms(names: list[str], norms: Tensor) -> Tensor:
    """For each parameter the norm of its layer: those whose names agree up to the last dot."""
    parts, layers = norms.unbind(), [name.rpartition(".")[0] for name in names]
    members: dict[str, list[Tensor]] = {}
    for layer, part in zip(layers, parts, strict=True):
        members.setdefault(layer, []).append(part)
    wholes = {layer: torch.linalg.vector_norm(torch.stack(found)) for layer, found in members.items()}
    return torch.stack([wholes[layer] for layer in layers])


@dataclass(frozen=True)
class ScaleByTrustRatio(GradientEdit):
    r"""Scale each parameter's gradient to a share of the norm of its weights (LARS).

    .. math:: g \leftarrow g \cdot \eta \frac{\lVert w \rVert_2}{\lVert g \rVert_2}

    Use it with SGD at large batches: each layer then moves by the same share of its size a step. Where weights or
    gradient are all zero the gradient stays as it is, so that a weight that starts at 0 can grow. Biases and the
    parameters of normalization layers are usually left out, with ``Only``. Adam undoes it for the most part.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        coefficient: the share, positive; 0.001 in the paper, where the learning rate is above 1.
        eps: gradient norms under it count as it; positive.

    Raises:
        ValueError: when a setting is not positive.

    Non-finite gradients: a gradient with NaN or Inf in it stays as it is; the others are scaled.
    Cost: two fused norm passes (gradients, weights), one multiplication a parameter. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight.grad = torch.tensor([0.0, 1e-6])
        >>> ScaleByTrustRatio(0.1)({"weight": weight})
        >>> weight.grad
        tensor([0.0000, 0.5000])

    References: You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    https://arxiv.org/abs/1708.03888. There weight decay is part of the denominator; here the optimizer adds it after.
    """

    coefficient: float = 1.0
    eps: float = 1e-12
    parameters_only = True

    def __post_init__(self) -> None:
        check_number("coefficient", self.coefficient, 0, above=True)
        check_number("eps", self.eps, 0, above=True)

    def edit(self, gradients: Gradients) -> None:
        """Scale each by its own number."""
        norms, weights = gradients.norms(), gradients.weight_norms()
        usable = (norms > 0) & (weights > 0) & weights.isfinite()
        gradients.scale_each_(torch.where(usable, stretching(norms, weights * self.coefficient, self.eps), 1.0))
