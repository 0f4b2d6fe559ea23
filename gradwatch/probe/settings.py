"""What is known of an optimizer without looking at a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Settings:
    """An optimizer's settings.

    Attributes:
        optimizer: its class's name.
        learning_rate: the largest of its groups; NaN where only a device knows it.

    Example:
        >>> import torch
        >>> Settings.of(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        Settings(optimizer='SGD', learning_rate=0.1)
    """

    optimizer: str = ""
    learning_rate: float = math.nan

    @classmethod
    def of(cls, optimizer: Optimizer) -> Settings:
        """Those of an optimizer as it is about to step."""
        wrapped = getattr(optimizer, "optimizer", optimizer)  # LightningOptimizer
        rates = [_on_host(group.get("lr", math.nan)) for group in optimizer.param_groups]
        return cls(type(wrapped).__name__, max(rates, default=math.nan))


def _on_host(rate: Any) -> float:
    if isinstance(rate, Tensor) and not rate.is_cpu:
        return math.nan
    try:
        return float(rate)
    except (TypeError, ValueError):  # an optimizer of the user's may call anything "lr"
        return math.nan
