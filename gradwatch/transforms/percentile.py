"""AutoClip: a clip on the total norm at a percentile of its own history."""

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
