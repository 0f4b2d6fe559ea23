"""A clip that can't do anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gradwatch.checks import require_whole
from gradwatch.records import Finding, Snapshot

_REASONS = {
    "before backward": "runs before backward(), when there is no gradient of this step to clip",
    "no gradients": "is given parameters none of which has a gradient, so it clips nothing",
}


@dataclass
class IdleClip:
    """``clip_grad_norm_`` is called before the backward pass, or on parameters without a gradient.

    A clip that has worked before is no finding: its part of the model is at rest. A bound that is never met is none
    either: the summary tells it, and it is a cause where the gradient explodes.

    Args:
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(0, (), clip="before backward", clip_max_norm=1.0)
        >>> [(finding.value, finding.case) for finding in IdleClip()(snapshot)]
        [(1.0, 'before backward')]
    """

    patience: int = 3
    _has_worked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding about the clip of a step."""
        self._has_worked = self._has_worked or snapshot.clip == "norm"
        if self._has_worked or snapshot.clip not in _REASONS:
            return
        bound = snapshot.clip_max_norm
        message = f"idle-clip: clip_grad_norm_(..., max_norm={bound:.3g}) {_REASONS[snapshot.clip]}."
        yield Finding("idle-clip", ("clip_grad_norm_",), snapshot.step, bound, 0.0, message, case=snapshot.clip)

    def state_dict(self) -> dict[str, Any]:
        """Return if the clip has worked, for a checkpoint."""
        return {"has_worked": self._has_worked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._has_worked = bool(state["has_worked"])
