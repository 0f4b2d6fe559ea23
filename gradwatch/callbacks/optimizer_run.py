"""A chain at work on one optimizer, and what it did so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.transforms import Chain, Gradients, Outcome, StepContext


class OptimizerRun:
    """One optimizer's chain, and what it did so far."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.steps = 0
        self.skipped = 0
        self._clipped: Tensor | None = None

    def step(self, params: Mapping[str, nn.Parameter], context: StepContext) -> Outcome:
        """Run the chain and count."""
        outcome = self.chain(params, context)
        self.steps += 1
        self.skipped += outcome.skipped
        if outcome.clipped is not None:
            clipped = outcome.clipped.to(torch.int64)
            self._clipped = clipped if self._clipped is None else self._clipped.to(clipped.device) + clipped
        return outcome

    def numbers(self, outcome: Outcome, before: Tensor | None, after: Tensor | None) -> dict[str, float]:
        """What is to be logged, brought to the host in one transfer."""
        waiting = {
            "grad_norm_total": before,
            "grad_norm_total_after": after,
            "clip_coefficient": outcome.coefficient,
            "clipped_share": None if self._clipped is None else self._clipped / self.steps,
        }
        present = {key: value for key, value in waiting.items() if value is not None}
        home = next((value.device for value in present.values()), None)
        numbers = [value.to(home, torch.float32) for value in present.values()]
        found = dict(zip(present, torch.stack(numbers).tolist() if numbers else [], strict=True))
        return found | {"skipped_steps": float(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """The chain's state and the counts."""
        clipped = None if self._clipped is None else int(self._clipped)
        return {"chain": self.chain.state_dict(), "steps": self.steps, "skipped": self.skipped, "clipped": clipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.chain.load_state_dict(state["chain"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._clipped = None if state["clipped"] is None else torch.tensor(state["clipped"])


def total_norm(params: Mapping[str, nn.Parameter]) -> Tensor | None:
    """L2 norm of all gradients, left on the device; None where there is none."""
    with torch.no_grad():
        gradients = Gradients(params)
        return gradients.total_norm() if gradients.values else None
