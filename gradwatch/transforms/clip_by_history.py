"""Clips whose bound follows the run: the total norm against the norms of the steps before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradwatch.checks import require_number, require_whole
from gradwatch.transforms.clip import clip_all
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit, Outcome


class _ClipByHistory(GradientEdit):
    """Clips the total norm at a bound that its own history sets."""

    is_clip = True
    learns_bound = True

    def edit(self, gradients: Gradients) -> Outcome:
        """Clip to the bound of this step, and add the norm to the history."""
        norm = gradients.total_norm()
        return clip_all(gradients, norm, self._bound(norm))

    @abstractmethod
    def _bound(self, norm: Tensor) -> Tensor:
        """Return the bound of this step and update the history, without a sync: decide by ``torch.where`` alone."""

    def _check_length(self, saved: Tensor | None, expected: int) -> None:
        if saved is not None and len(saved) != expected:
            raise ValueError(f"the saved state has {len(saved)} norms; expected {expected}, as {self!r} keeps")


@dataclass(eq=False)
class PercentileClip(_ClipByHistory):
    r"""Clip the total norm to a percentile of the norms of the steps so far (AutoClip).

    .. math:: g \leftarrow g \cdot \min(1, P_p(n_{t-h+1}, \dots, n_t) / n_t), \quad n_t = \lVert g_t \rVert_2

    Use it where no fixed bound fits the whole run. It clips ``100 - p`` percent of the steps by design, so it also acts
    as a lower learning rate. The paper's 10 is strong; 90 clips only outliers.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        percentile: from 0 to 100; of the history with this step's norm, interpolated linearly.
        history: number of latest norms to keep.

    Raises:
        ValueError: when the percentile is outside 0 to 100, or the history is not at least 1.

    Non-finite gradients: nothing is changed, and the norm does not enter the history.
    Cost: one global clip and a sort of the history; it does not grow with the run. No sync. State: one float64 for
    each step of the history.

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
    _norms: Tensor | None = field(default=None, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        require_number(self, least=0, most=100, percentile=self.percentile)
        require_whole(self, history=self.history)

    def _bound(self, norm: Tensor) -> Tensor:
        if self._norms is None:
            self._norms = norm.new_full((self.history,), float("nan"))
        self._norms = self._norms.to(norm.device)  # a loaded checkpoint may be on another one
        oldest = self._norms[self._steps % self.history]
        oldest.copy_(torch.where(norm.isfinite(), norm, oldest))
        self._steps += 1
        return torch.nanquantile(self._norms, self.percentile / 100)

    def state_dict(self) -> dict[str, Any]:
        """Return the history, a ring buffer in which NaN marks an empty place, and the number of steps."""
        return {"norms": None if self._norms is None else self._norms.clone(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a history of the same length."""
        norms = state["norms"]
        self._check_length(norms, self.history)
        self._norms = None if norms is None else norms.clone()
        self._steps = state["steps"]


@dataclass(eq=False)
class ZScoreClip(_ClipByHistory):
    r"""Clip the total norm if it is more than ``z_max`` standard deviations above its moving average (ZClip).

    .. math:: z = \frac{n - \mu}{\sigma + 10^{-6}}, \qquad z > z_{max}: \;
        c = \mu + \frac{z_{max}^2}{z} \sigma, \qquad g \leftarrow g \cdot \min(1, c_{max} / n, c / n)

    Use it against rare loss spikes in long runs. Ordinary steps are not clipped, whatever their size; the larger an
    outlier, the harder it is clipped. After a lasting rise of the norm it clips for some time.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept.

    Args:
        z_max: standard deviations above the mean, positive.
        alpha: share of mean and variance kept at each step, from 0 to below 1.
        warmup: number of finite norms that set the first mean and variance; until then only ``max_norm`` clips.
        max_norm: bound for every step; None for no such bound.

    Raises:
        ValueError: when a setting is out of its range.

    Non-finite gradients: nothing is changed, and the statistics are not updated.
    Cost: one global clip and about 30 operations on scalars; no sync. State: ``warmup`` + 3 numbers.

    Example:
        >>> clip, weight = ZScoreClip(warmup=3, max_norm=None), torch.nn.Parameter(torch.zeros(1))
        >>> for value in (1.0, 2.0, 3.0, 100.0):
        ...     weight.grad = torch.tensor([value])
        ...     outcome = clip({"weight": weight})
        >>> weight.grad
        tensor([2.0425])

    References: Kumar, Owen, Chowdhury, Guera, ZClip: Adaptive Spike Mitigation for LLM Pre-Training, 2025,
    https://arxiv.org/abs/2504.02507. As there, the clipped norm and not the spike enters the statistics. Unlike there,
    NaN and Inf never enter, and the first mean and variance exclude outliers of the warm-up by the same rule.
    """

    z_max: float = 2.5
    alpha: float = 0.97
    warmup: int = 25
    max_norm: float | None = 1.0
    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_number(self, above=0, z_max=self.z_max)
        require_number(self, least=0, below=1, alpha=self.alpha)  # at 1 the statistics never change
        require_whole(self, least=2, warmup=self.warmup)
        if self.max_norm is not None:
            require_number(self, above=0, max_norm=self.max_norm)

    def _bound(self, norm: Tensor) -> Tensor:
        # Every branch is computed and torch.where picks: an `if` on the device's numbers would wait for them.
        state = self._state_on(norm)
        seen, mean, var = state["seen"], state["mean"], state["var"]
        ready = seen >= self.warmup
        bound = torch.where(ready, self._outlier_bound(norm, mean, var), torch.inf)
        finite, clipped = norm.isfinite(), torch.minimum(norm, bound)
        moved_mean = self.alpha * mean + (1 - self.alpha) * clipped
        moved_var = self.alpha * var + (1 - self.alpha) * (clipped - moved_mean).square()
        # Write the norm to the next free place of the warm-up; after it, no place equals `seen`.
        places = torch.arange(self.warmup, device=norm.device)
        norms = torch.where((places == seen) & finite, norm, state["norms"])
        seen = seen + (finite & ~ready)
        first_mean, first_var = self._first_statistics(norms)
        begin, move = (seen >= self.warmup) & ~ready, ready & finite
        mean = torch.where(begin, first_mean, torch.where(move, moved_mean, mean))
        var = torch.where(begin, first_var, torch.where(move, moved_var, var))
        self._state = {"norms": norms, "seen": seen, "mean": mean, "var": var}
        return bound if self.max_norm is None else bound.clamp(max=self.max_norm)

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
        """Return mean and variance of the warm-up's norms without its outliers."""
        z = (norms - norms.mean()) / (norms.std(correction=0) + 1e-6)
        kept = (z <= self.z_max).to(norms.dtype)
        mean = (norms * kept).sum() / kept.sum()
        return mean, ((norms - mean).square() * kept).sum() / kept.sum()

    def state_dict(self) -> dict[str, Any]:
        """Return mean, variance and the norms of the warm-up; empty before the first step."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore statistics with a warm-up of the same length."""
        if state:
            self._check_length(state["norms"], self.warmup)
        self._state = {name: value.clone() for name, value in state.items()}
