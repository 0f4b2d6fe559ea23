"""A learning rate that rises from small to full over the first steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from gradwatch.remedies.configured import optimizers_in
from gradwatch.remedies.optimizer_remedy import OptimizerRemedy, construction_like, method_code
from gradwatch.remedies.setup import Setup


@dataclass(frozen=True)
class WarmUp(OptimizerRemedy):
    """Let the learning rate rise in a line over the first steps, on top of whatever schedule there is.

    At the start an adaptive optimizer knows little of the gradient's size, and that of a Post-LN transformer is large
    near the output: full steps then do harm that is not made good. The count of steps is not in a checkpoint; the
    ``code`` is, so use that for runs that are resumed.

    Args:
        steps: until the full rate, at least 1.

    Raises:
        ValueError: for a count below 1.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.ones(1)
        >>> optimizer = WarmUp(steps=4).configure(torch.optim.SGD([weight], lr=1.0))
        >>> for _ in range(2):
        ...     optimizer.step()
        >>> weight.item(), optimizer.param_groups[0]["lr"]
        (0.25, 1.0)

    References: Goyal et al., 2017, https://arxiv.org/abs/1706.02677; Liu et al., On the variance of the adaptive
    learning rate, 2020, https://arxiv.org/abs/1908.03265.
    """

    steps: int = 100
    fits: ClassVar[Mapping[str, float]] = {"missing warm-up": 1.0, "learning rate too high": 0.5, "outlier batch": 0.1}

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; expected an integer of at least 1")

    def configure(self, configured: Any) -> Any:
        """Hook the ramp to each optimizer's step, so that it composes with any scheduler."""
        for optimizer in optimizers_in(configured):
            ramp = _Ramp(self.steps)
            optimizer.register_step_pre_hook(ramp.lower)
            optimizer.register_step_post_hook(ramp.restore)
        return configured

    def patch(self, setup: Setup) -> str:
        """A LinearLR; one that there is already goes behind it in a SequentialLR."""
        made = construction_like(setup.module, "AdamW")
        settings = f"start_factor={1 / self.steps:.3g}, total_iters={self.steps}"
        ramp = f"torch.optim.lr_scheduler.LinearLR(optimizer, {settings})"
        step = "return {{'optimizer': optimizer, 'lr_scheduler': {{'scheduler': warm_up, 'interval': 'step'}}}}"
        return method_code(setup.module, [f"optimizer = {made}", f"warm_up = {ramp}", step])


class _Ramp:
    """Lowers the rates for the time of a step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.taken = steps, 0
        self._full: list[Any] = []

    def lower(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.taken += 1
        self._full = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * min(self.taken / self.steps, 1.0)

    def restore(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._full, strict=True):
            group["lr"] = rate
