"""Transforms for a step whose gradient contains NaN or Inf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gradwatch.checks import require_whole
from gradwatch.probe.shards import any_rank
from gradwatch.transforms.gradients import Gradients
from gradwatch.transforms.transform import GradientEdit, Outcome, Params, StepContext, Transform


@dataclass(eq=False)
class SkipNonFinite(Transform):
    """Skip a step whose gradient contains NaN or Inf, by ``grad = None`` for all parameters.

    Use it against a rare bad batch, and put it first in a chain. With ``grad = None`` the optimizer changes nothing: no
    weight decay, no momentum, no step count. It does not repair BatchNorm's running statistics, which the forward pass
    has updated by then. A loss scaler (fp16) skips such steps by itself; its overflows count here too.

    Shapes: ``param.grad``: any shape; None after a skip, else untouched.

    Args:
        budget: number of consecutive steps that may be skipped.

    Attributes:
        skipped: number of steps skipped so far.

    Raises:
        ValueError: when ``budget`` is not a whole number of at least 1.
        FloatingPointError: at the first step beyond the budget, as the cause is then not a rare batch.

    Non-finite gradients: the whole step is skipped, on all ranks together.
    Cost: one fused norm pass and one sync, as ``grad = None`` is decided on the host; with several ranks an all-reduce
    of one byte. All ranks must take the same number of steps. State: two counts.

    Example:
        >>> skip, weight = SkipNonFinite(budget=1), torch.nn.Parameter(torch.zeros(1))
        >>> weight.grad = torch.tensor([float("nan")])
        >>> skip({"weight": weight}).skipped, weight.grad, skip.skipped
        (True, None, 1)

    References: ``optax.apply_if_finite``.
    """

    budget: int = 10
    parameters_only = True
    skipped: int = field(default=0, init=False, repr=False)
    _in_a_row: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole(self, budget=self.budget)

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Remove the gradients if one of them, on any rank, is not finite."""
        with torch.no_grad():
            gradients = Gradients(params)
            # All ranks decide together: one that skipped alone would train other weights from here on.
            if not any_rank(_is_bad(gradients, params)):
                self._in_a_row = 0
                return None
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self.budget:
            raise FloatingPointError(self._message(gradients))
        for param in params.values():
            param.grad = None
        return Outcome(skipped=True)

    def _message(self, gradients: Gradients) -> str:
        norms = gradients.norms().tolist() if gradients.values else []
        bad = [name for name, norm in zip(gradients.names, norms, strict=True) if not math.isfinite(norm)]
        return (
            f"{self._in_a_row} steps in a row had a gradient with NaN or Inf, and {self!r} allows {self.budget}; "
            f"this one has it in {len(bad)} parameters, first {', '.join(bad[:3]) or 'on another rank'}. "
            "Lower the learning rate, or find the operation with torch.autograd.detect_anomaly()"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the two counts."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the two counts."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]


def _is_bad(gradients: Gradients, params: Params) -> torch.Tensor:
    if gradients.values:
        return ~gradients.total_norm().isfinite()
    home = next((param.device for param in params.values()), torch.device("cpu"))
    return torch.zeros((), dtype=torch.bool, device=home)


@dataclass(frozen=True)
class ZeroNonFinite(GradientEdit):
    """Set entries that are NaN or Inf to 0 and keep the others.

    Use it where a few entries are bad for a known reason (a masked loss, 0 / 0 in a feature). Otherwise prefer
    ``SkipNonFinite``: the rest of a bad gradient has no meaningful direction, and the optimizer steps along it.

    Shapes: ``param.grad``: any shape; in place; dtype and device kept. A complex entry is one entry.

    Non-finite gradients: no entry is NaN or Inf after it.
    Cost: one pass. No sync, no state.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([float("nan"), 1.0])
        >>> ZeroNonFinite()({"weight": weight})
        >>> weight.grad
        tensor([0., 1.])

    References: ``optax.zero_nans``, which leaves Inf in place.
    """

    elementwise = True

    def edit(self, gradients: Gradients) -> None:
        """Overwrite the entries that are not finite."""
        for values, grad in zip(gradients.values, gradients.grads, strict=True):
            if grad.is_complex():
                values.masked_fill_(~values.isfinite().all(-1, keepdim=True), 0.0)
            else:
                values.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
