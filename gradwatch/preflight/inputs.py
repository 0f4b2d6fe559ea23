"""The scale of what the first layer gets, and of what the loss compares the output with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Initializations keep the size of inputs of unit variance (LeCun et al., Efficient BackProp, 1998, 4.3: inputs of mean
# 0 and about equal covariance). Ten times that is more than standardized, 0-to-1 or embedded data ever shows; pixels
# of 0 to 255 have 100 and more.
LARGE = 10.0


@dataclass(frozen=True)
class Scale:
    """How large the values of a batch are.

    Attributes:
        rms: root mean square of the finite values.
        mean: their mean.
        deviations: smallest and largest standard deviation of a feature, of those that vary; NaN where there are no
            features (not two dimensions) or none varies.
        constant: features that do not vary.
        nonfinite: values that are NaN or Inf.
        outlier: the largest RMS of a sample over the median one.

    Example:
        >>> measure(torch.tensor([[0.0, 100.0], [1.0, 100.0], [0.0, 100.0], [1.0, 100.0]])).constant
        1
    """

    rms: float
    mean: float
    deviations: tuple[float, float] = (math.nan, math.nan)
    constant: int = 0
    nonfinite: int = 0
    outlier: float = 1.0

    @property
    def is_large(self) -> bool:
        """Whether it is more than a network's initialization is made for."""
        return self.rms > LARGE

    def __str__(self) -> str:
        parts = [f"root mean square {self.rms:.3g}, mean {self.mean:.3g}"]
        if not math.isnan(self.deviations[0]):
            parts.append("the features' standard deviations {:.2g} to {:.2g}".format(*self.deviations))
        if self.constant:
            parts.append(f"{self.constant} features constant")
        if self.nonfinite:
            parts.append(f"{self.nonfinite} values NaN or Inf")
        if self.outlier > 10:
            parts.append(f"the largest sample {self.outlier:.3g} times the median one")
        return ", ".join(parts)


def measure(values: Tensor) -> Scale:
    """The scale of a batch, whose samples are along the first dimension.

    Example:
        >>> print(measure(torch.tensor([3.0, -3.0])))
        root mean square 3, mean 0
    """
    values = values.detach().double()
    finite = torch.isfinite(values)
    clean = torch.where(finite, values, 0.0)
    count = max(int(finite.sum()), 1)
    rms, mean = float((clean.square().sum() / count).sqrt()), float(clean.sum() / count)
    return Scale(rms, mean, *_features(clean), nonfinite=int((~finite).sum()), outlier=_outlier(clean))


def _features(values: Tensor) -> tuple[tuple[float, float], int]:
    if values.dim() != 2 or len(values) < 2:
        return (math.nan, math.nan), 0
    deviations = values.std(0)
    varying = deviations[deviations > 0]
    span = (float(varying.min()), float(varying.max())) if len(varying) else (math.nan, math.nan)
    return span, len(deviations) - len(varying)


def _outlier(values: Tensor) -> float:
    if values.dim() < 1 or len(values) < 4 or not values.numel():
        return 1.0
    sizes = values.flatten(1).square().mean(1).sqrt() if values.dim() > 1 else values.abs()
    median = float(sizes.median())
    return float(sizes.max()) / median if median > 0 else 1.0
