"""The same optimizer with a lower, or a higher, learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradwatch.remedies.configured import scale_rates
from gradwatch.remedies.optimizer_remedy import OptimizerRemedy, construction_like, method_code
from gradwatch.remedies.setup import Setup


class _ScaleRates(OptimizerRemedy):
    """Multiplies every learning rate by a factor."""

    factor: float

    def configure(self, configured: Any) -> Any:
        """Scale the rates."""
        scale_rates(configured, self.factor)
        return configured

    def patch(self, setup: Setup) -> str:
        """With the new rate as a number, where the old one is known."""
        made = construction_like(setup.module, "SGD", self.factor)
        return method_code(setup.module, [f"optimizer = {made}", "return optimizer"])


@dataclass(frozen=True)
class LowerLearningRate(_ScaleRates):
    """Multiply every learning rate by a factor below 1.

    Args:
        factor: above 0, below 1.

    Raises:
        ValueError: for another factor.

    Example:
        >>> LowerLearningRate(2.0)
        Traceback (most recent call last):
            ...
        ValueError: factor is 2.0; expected a number above 0 and below 1
    """

    factor: float = 0.1
    fits: ClassVar[Mapping[str, float]] = {
        "learning rate too high": 1.0,
        "missing warm-up": 0.4,
        "unscaled target": 0.5,
        "dead ReLU": 0.5,
        "unscaled input": 0.4,
        "initialization too large": 0.3,
    }

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"factor is {self.factor!r}; expected a number above 0 and below 1")


@dataclass(frozen=True)
class RaiseLearningRate(_ScaleRates):
    """Multiply every learning rate by a factor above 1.

    Args:
        factor: above 1.

    Raises:
        ValueError: for another factor.

    Example:
        >>> from torch import nn
        >>> print(RaiseLearningRate(1e4).code(nn.Linear(1, 1)))
        optimizer = torch.optim.SGD(model.parameters(), lr=10000 * lr)
    """

    factor: float = 100.0
    fits: ClassVar[Mapping[str, float]] = {"learning rate too low": 1.0}

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor!r}; expected a number above 1")
