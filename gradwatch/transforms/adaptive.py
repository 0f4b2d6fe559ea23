"""AGC: a clip with a bound that each unit's weights set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.probe.patterns import check_patterns, matches
from gradwatch.probe.shards import over_shards
from gradwatch.transforms.bounds import check_number, shrinking
from gradwatch.transforms.gradients import Gradients, scale_exactly_
from gradwatch.transforms.transform import GradientEdit, Outcome, Params, StepContext
from gradwatch.transforms.units import Units, units


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
