"""Another optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from gradwatch.remedies.configured import exchange, optimizers_in, scale_rates
from gradwatch.remedies.optimizer_remedy import OptimizerRemedy, method_code, optimizers_of
from gradwatch.remedies.setup import NotApplicable, Setup


@dataclass(frozen=True)
class ChangeOptimizer(OptimizerRemedy):
    """Train with another optimizer; one that scales each parameter's step by itself needs no large gradients.

    Parameter groups stay, and so do the ratios of their learning rates; a scheduler goes on with the new rate.

    Args:
        to: class in ``torch.optim``.
        lr: learning rate of the first parameter group.
        weight_decay: of all groups; None keeps theirs.

    Raises:
        ValueError: when ``torch.optim`` has no such class, or ``lr`` is not positive.

    Example:
        >>> from torch import nn
        >>> print(ChangeOptimizer().code(nn.Linear(1, 1)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)

    References: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980; Loshchilov and Hutter, 2019,
    https://arxiv.org/abs/1711.05101.
    """

    to: str = "AdamW"
    lr: float = 1e-3
    weight_decay: float | None = None
    fits: ClassVar[Mapping[str, float]] = {
        "initialization too small": 0.5,
        "saturating activation": 0.4,
        "missing normalization or skip": 0.4,
        "unscaled target": 0.5,
        "learning rate too high": 0.5,
    }

    def __post_init__(self) -> None:
        made = getattr(torch.optim, self.to, None)
        if not (isinstance(made, type) and issubclass(made, Optimizer)) or made is Optimizer:
            raise ValueError(f"to is {self.to!r}; expected the name of an optimizer in torch.optim, such as 'AdamW'")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr!r}; expected a number above 0")

    def change(self, setup: Setup) -> Setup:
        """Unless it is there already."""
        kinds = {type(optimizer).__name__ for optimizer in optimizers_of(setup.module)}
        if kinds == {self.to}:
            raise NotApplicable(f"{type(setup.module).__name__} is trained with {self.to} already; lower its rate")
        return super().change(setup)

    def configure(self, configured: Any) -> Any:
        """Exchange each optimizer."""
        found = optimizers_in(configured)
        old = float(found[0].param_groups[0]["lr"]) if found else 0.0
        if old > 0:
            scale_rates(configured, self.lr / old)
        return exchange(configured, self._new)

    def _new(self, old: Optimizer) -> Optimizer:
        # What is no setting of the old optimizer was put there by a scheduler or the user, and is needed again.
        dropped = {*old.defaults} - {"lr", "weight_decay"}
        groups = [{key: group[key] for key in group if key not in dropped} for group in old.param_groups]
        if self.weight_decay is not None:
            groups = [{**group, "weight_decay": self.weight_decay} for group in groups]
        made: Optimizer = getattr(torch.optim, self.to)(groups, lr=self.lr)
        return made

    def patch(self, setup: Setup) -> str:
        """The method, or the line of a loop."""
        decay = "" if self.weight_decay is None else f", weight_decay={self.weight_decay}"
        made = f"torch.optim.{self.to}({{model}}.parameters(), lr={self.lr}{decay})"
        return method_code(setup.module, [f"optimizer = {made}", "return optimizer"])
