"""AutoClip: a clip on the total norm at a percentile of its own history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradwatch.transforms.clip import check_count, check_number, clip_all
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit, Outcome


@dataclass(eq=False)
class PercentileClip(GradientEdit):
    r"""Clip the total norm to a percentile of the norms of the steps so far (AutoClip).

    .. math:: g \leftarrow g \cdot \min(1, P_p(n_{t-h+1}, \dots, n_t) / n_t), \quad n_t = \lVert g_t \rVert_2

    Use it where no fixed bound suits: it follows the run. It clips ``100 - p`` percent of the steps by design, so it
    acts as a lower learning rate too. The paper's 10 is strong; 90 only takes the outliers.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        percentile: from 0 to 100; that of the history, this step's norm included, with linear interpolation.
        history: how many of the latest norms count.

    Raises:
        ValueError: when the percentile is outside 0 to 100, or the history is not at least 1.

    Non-finite gradients: nothing is changed, and the norm does not enter the history.
    Cost: one global clip, and a sort of the history: the same at any length of the run. No sync. State: one float64
    for each step of the history.

    Example:
        >>> clip, weight = PercentileClip(50), torch.nn.Parameter(torch.zeros(1))
        >>> for value in (1.0, 3.0):
        ...     weight.grad = torch.tensor([value])
        ...     outcome = clip({"weight": weight})
        >>> weight.grad
        tensor([2.])

    References: Seetharaman, Wichern, Pardo, Le Roux, AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks, 2020, https://arxiv.org/abs/2007.14469. There the history is unbounded.
    """

    percentile: float = 10.0
    history: int = 1000
    is_clip = True
    learns_bound = True
    _norms: Tensor | None = field(default=None, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("percentile", self.percentile, 0, 100)
        check_count("history", self.history)

    def edit(self, gradients: Gradients) -> Outcome:
        """Take the norm into the history and clip to its percentile."""
        norm = gradients.total_norm()
        return clip_all(gradients, norm, self._threshold(norm))

    def _threshold(self, norm: Tensor) -> Tensor:
        if self._norms is None:
            self._norms = norm.new_full((self.history,), float("nan"))
        self._norms = self._norms.to(norm.device)
        oldest = self._norms[self._steps % self.history]
        oldest.copy_(torch.where(norm.isfinite(), norm, oldest))
        self._steps += 1
        return torch.nanquantile(self._norms, self.percentile / 100)

    def state_dict(self) -> dict[str, Any]:
        """The history, where NaN marks a place that is still empty."""
        return {"norms": None if self._norms is None else self._norms.clone(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a history of the same length."""
        norms = state["norms"]
        if norms is not None and len(norms) != self.history:
            raise ValueError(
                f"the saved history has {len(norms)} norms; expected {self.history}, as this clip was given"
            )
        self._norms = None if norms is None else norms.clone()
        self._steps = state["steps"]


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
