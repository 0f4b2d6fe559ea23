"""A chain at work on one optimizer, what it did so far, and the chains of all optimizers of a fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.probe.stepping import unscales_itself
from gradwatch.transforms import Chain, Gradients, Outcome, StepContext


class OptimizerRun:
    """One optimizer's chain, and what it did so far.

    Example:
        >>> from gradwatch.transforms import ClipByNorm
        >>> run = OptimizerRun(Chain([ClipByNorm(1.0)]))
        >>> outcome = run.step(dict(nn.Linear(1, 1).named_parameters()), StepContext())
        >>> run.steps, run.skipped
        (1, 0)
    """

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
        """Return what is to be logged, brought to the host in one transfer."""
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
        """Return the chain's state and the counts."""
        clipped = None if self._clipped is None else int(self._clipped)
        return {"chain": self.chain.state_dict(), "steps": self.steps, "skipped": self.skipped, "clipped": clipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.chain.load_state_dict(state["chain"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._clipped = None if state["clipped"] is None else torch.tensor(state["clipped"])


class OptimizerRuns:
    """The runs of all optimizers of a fit, each with its own copy of the chain; the first one has the chain itself.

    Args:
        chain: in the state in which each optimizer's copy begins.

    Example:
        >>> from gradwatch.transforms import ClipByNorm
        >>> runs = OptimizerRuns(Chain([ClipByNorm(1.0)]))
        >>> runs.index_of(torch.optim.SGD([torch.ones(1)]), ["hand_made.weight"], known=[])
        0
        >>> runs[0].steps
        0
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._pristine = _copy_of(chain)
        self._runs: dict[int, OptimizerRun] = {}
        self._others: dict[tuple[str, ...], int] = {}

    def __getitem__(self, index: int) -> OptimizerRun:
        if index not in self._runs:
            chain = self._chain if index == 0 else copy.deepcopy(self._pristine or self._chain)
            self._runs[index] = OptimizerRun(chain)
        return self._runs[index]

    def index_of(self, optimizer: Optimizer, names: Sequence[str], known: Sequence[Optimizer]) -> int:
        """Return an optimizer's place among the Trainer's, or a place behind them.

        The others go by the names of their parameters: some people make a new optimizer for each batch, and a resumed
        run has other objects.
        """
        index = next((i for i, one in enumerate(known) if one is optimizer), None)
        if index is not None:
            return index
        return len(known) + self._others.setdefault(tuple(names), len(self._others))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each run."""
        return {str(index): run.state_dict() for index, run in self._runs.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was made."""
        for index, of_run in sorted(state.items(), key=lambda item: -int(item[0])):
            self[int(index)].load_state_dict(of_run)


def _copy_of(chain: Chain) -> Chain | None:
    try:
        return copy.deepcopy(chain)
    except Exception:  # a user's transform that can't be copied; with one optimizer no copy is needed
        return None


def total_norm(params: Mapping[str, nn.Parameter]) -> Tensor | None:
    """Return the L2 norm of all gradients, left on the device; None where there is none."""
    with torch.no_grad():
        gradients = Gradients(params)
        return gradients.total_norm() if gradients.values else None


def is_scaled(optimizer: Optimizer, scaler: Any) -> bool:
    """Return True if an optimizer that is about to step has gradients that are still multiplied by a loss scale.

    Args:
        optimizer: it steps past Lightning.
        scaler: the Trainer's loss scaler, or None; a step through its own ``step`` method is unscaled.

    Example:
        >>> is_scaled(torch.optim.SGD([torch.ones(1)]), scaler=None)
        False
    """
    if unscales_itself(optimizer) and getattr(optimizer, "grad_scale", None) is not None:
        return True  # a scaler, be it the user's own, has left the division to the optimizer
    if scaler is None or not scaler.is_enabled():
        return False
    # Seen in torch 2.13. Where it is missing, gradients are taken for scaled.
    states: Any = getattr(scaler, "_per_optimizer_states", {})
    stage = states[id(optimizer)].get("stage") if id(optimizer) in states else None
    return getattr(stage, "name", None) != "UNSCALED"
