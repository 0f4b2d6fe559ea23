"""Gradients that nobody clears between the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gradwatch.checks import require_whole
from gradwatch.records import Finding, Snapshot


@dataclass
class CarriedOver:
    """The gradient of an earlier step is still there when a step begins, and the next one is added to it.

    The optimizer then steps along the sum of all gradients so far. The loss may fall all the same, so that nothing else
    shows it. Gradients that are accumulated on purpose are none of these: the optimizer has not stepped along them yet.

    A parameter counts until its optimizer steps along a gradient that was cleared: with several optimizers it may not
    step for a while.

    Args:
        patience: measured steps in a row until it is a finding. One alone is no fault: a search for a learning rate, or
            a first backward pass by hand, leaves a gradient behind that the program clears after its first step.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(1, (), params=("a.weight", "a.bias"), carried_over=("a.weight",))
        >>> [finding.layers for finding in CarriedOver()(snapshot)]
        [('a.weight',)]

    References:
        No published rule, and no threshold: what is added to a gradient that was used already is a fact.
    """

    patience: int = 2
    _carried: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all parameters whose gradients were not cleared."""
        self._carried = (self._carried - set(snapshot.params)) | set(snapshot.carried_over)
        if self._carried:
            names = (*snapshot.carried_over, *sorted(self._carried - set(snapshot.carried_over)))
            message = (
                f"carried-over gradients: {len(names)} parameters still hold the gradient of the step before, among "
                f"them {', '.join(names[:3])}: optimizer.zero_grad() is missing."
            )
            yield Finding("carried-over", names, snapshot.step, float(len(names)), 0.0, message)

    def state_dict(self) -> dict[str, Any]:
        """The parameters that were not cleared when their optimizer stepped last, for a checkpoint."""
        return {"carried": sorted(self._carried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._carried = set(state["carried"])
