"""ZClip: a clip on the total norm where it is an outlier of its own moving average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradwatch.transforms.bounds import check_count, check_number
from gradwatch.transforms.clip import clip_all
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit, Outcome


@dataclass(eq=False)
class ZScoreClip(GradientEdit):
    r"""Clip the total norm where it lies more than ``z_max`` standard deviations above its moving average (ZClip).

    .. math:: z = \frac{n - \mu}{\sigma + 10^{-6}}, \qquad z > z_{max}: \;
        c = \mu + \frac{z_{max}^2}{z} \sigma, \qquad g \leftarrow g \cdot \min(1, c_{max} / n, c / n)

    Use it against rare loss spikes in long runs: ordinary steps are left alone, whatever their size, and the further
    out a step is, the harder it is clipped. After a lasting change of level it clips for some time.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        z_max: standard deviations above the mean, positive.
        alpha: how much of mean and variance is kept each step, from 0 to below 1.
        warmup: steps with a finite norm that set the first mean and variance; only ``max_norm`` clips in them.
        max_norm: a bound that holds always; None for none.

    Raises:
        ValueError: when a setting is out of its range.

    Non-finite gradients: nothing is changed, and no statistic is.
    Cost: one global clip and about 30 operations on scalars; no sync. State: ``warmup`` + 3 numbers.

    Example:
        >>> clip, weight = ZScoreClip(warmup=3, max_norm=None), torch.nn.Parameter(torch.zeros(1))
        >>> for value in (1.0, 2.0, 3.0, 100.0):
        ...     weight.grad = torch.tensor([value])
        ...     outcome = clip({"weight": weight})
        >>> weight.grad
        tensor([2.0425])

    References: Kumar, Owen, Chowdhury, Guera, ZClip: Adaptive Spike Mitigation for LLM Pre-Training, 2025,
    https://arxiv.org/abs/2504.02507. As there, the clipped norm and not the spike enters the statistics. Other than
    there, NaN and Inf never do, and norms of the warm-up that are outliers by the same rule are left out of the first
    mean and variance.
    """

    z_max: float = 2.5
    alpha: float = 0.97
    warmup: int = 25
    max_norm: float | None = 1.0
    is_clip = True
    learns_bound = True
    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("z_max", self.z_max, 0, above=True)
        check_number("alpha", self.alpha, 0, 1)
        if self.alpha == 1:
            raise ValueError(f"alpha is {self.alpha}; expected a number below 1, else the statistics never change")
        check_count("warmup", self.warmup, low=2)
        if self.max_norm is not None:
            check_number("max_norm", self.max_norm, 0, above=True)

    def edit(self, gradients: Gradients) -> Outcome:
        """Clip to what the statistics say, and take the clipped norm into them."""
        norm = gradients.total_norm()
        bound = self._bound(norm)
        return clip_all(gradients, norm, bound if self.max_norm is None else bound.clamp(max=self.max_norm))

    def _bound(self, norm: Tensor) -> Tensor:
        state = self._state_on(norm)
        seen, mean, var = state["seen"], state["mean"], state["var"]
        ready = seen >= self.warmup
        bound = torch.where(ready, self._outlier_bound(norm, mean, var), torch.inf)
        finite, taken = norm.isfinite(), torch.minimum(norm, bound)
        moved_mean = self.alpha * mean + (1 - self.alpha) * taken
        moved_var = self.alpha * var + (1 - self.alpha) * (taken - moved_mean).square()
        slots = torch.arange(self.warmup, device=norm.device)
        norms = torch.where((slots == seen) & finite, norm, state["norms"])
        seen = seen + (finite & ~ready)
        first_mean, first_var = self._first_statistics(norms)
        begin, move = (seen >= self.warmup) & ~ready, ready & finite
        mean = torch.where(begin, first_mean, torch.where(move, moved_mean, mean))
        var = torch.where(begin, first_var, torch.where(move, moved_var, var))
        self._state = {"norms": norms, "seen": seen, "mean": mean, "var": var}
        return bound

    def _state_on(self, norm: Tensor) -> dict[str, Tensor]:
        if not self._state:
            names = {"norms": (self.warmup,), "mean": (), "var": ()}
            self._state = {name: norm.new_zeros(shape) for name, shape in names.items()}
            self._state["seen"] = norm.new_zeros((), dtype=torch.int64)
        return {name: value.to(norm.device) for name, value in self._state.items()}

    def _outlier_bound(self, norm: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        std = var.sqrt()
        z = (norm - mean) / (std + 1e-6)
        return torch.where(z > self.z_max, mean + self.z_max**2 / z * std, torch.inf)

    def _first_statistics(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        z = (norms - norms.mean()) / (norms.std(correction=0) + 1e-6)
        kept = (z <= self.z_max).to(norms.dtype)
        mean = (norms * kept).sum() / kept.sum()
        return mean, ((norms - mean).square() * kept).sum() / kept.sum()

    def state_dict(self) -> dict[str, Any]:
        """Mean, variance, and the norms of the warm-up; empty before the first step."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with statistics of the same warm-up."""
        if state and len(state["norms"]) != self.warmup:
            raise ValueError(f"the saved warm-up has {len(state['norms'])} steps; expected {self.warmup}")
        self._state = {name: value.clone() for name, value in state.items()}
