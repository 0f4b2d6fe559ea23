"""Remedies that edit gradients before each optimizer step, by transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from gradwatch.remedies.remedy import Remedy
from gradwatch.remedies.setup import NotApplicable, Setup
from gradwatch.transforms import NormalizeByNorm, SkipNonFinite, Transform, ZScoreClip


class TransformRemedy(Remedy):
    """Adds one transform to a set-up."""

    goes_first: ClassVar[bool] = False

    @abstractmethod
    def transform(self) -> Transform:
        """The transform."""

    def change(self, setup: Setup) -> Setup:
        """Add it, unless there is one of its kind."""
        new = self.transform()
        if any(isinstance(known, type(new)) for known in setup.transforms):
            raise NotApplicable(f"the transforms hold a {type(new).__name__} already: {setup.transforms}")
        both = (new, *setup.transforms) if self.goes_first else (*setup.transforms, new)
        return replace(setup, transforms=both)

    def patch(self, setup: Setup) -> str:
        """The callback, or the line of a loop."""
        new = self.transform()
        name = type(new).__name__
        if setup.trains_itself:
            return (
                "from gradwatch import GradientTransform\n"
                f"from gradwatch.transforms import {name}\n"
                f"trainer = Trainer(callbacks=[GradientTransform([{new!r}])])"
            )
        return (
            f"from gradwatch.transforms import {name}\n"
            f"transform = {new!r}\n"
            "transform(dict(model.named_parameters()))  # between loss.backward() and optimizer.step()"
        )


@dataclass(frozen=True)
class NormalizeGradients(TransformRemedy):
    """Give every parameter's gradient the same norm, so that a vanishing one moves its weights too.

    Its direction stays as noisy as it was, and its size no longer tells how far the optimum is.

    Args:
        norm: of each parameter's gradient, positive.

    Example:
        >>> from torch import nn
        >>> NormalizeGradients().apply(Setup(nn.Linear(1, 1))).transforms
        (NormalizeByNorm(target=1.0, by_layer=False, eps=1e-12),)
    """

    norm: float = 1.0
    fits: ClassVar[Mapping[str, float]] = {
        "saturating activation": 0.3,
        "initialization too small": 0.4,
        "unscaled target": 0.3,
    }

    def transform(self) -> Transform:
        """``NormalizeByNorm``."""
        return NormalizeByNorm(self.norm)


@dataclass(frozen=True)
class SkipBadSteps(TransformRemedy):
    """Leave out the steps whose gradient holds NaN or Inf.

    Args:
        budget: how many in a row.

    Example:
        >>> from torch import nn
        >>> SkipBadSteps().apply(Setup(nn.Linear(1, 1))).transforms
        (SkipNonFinite(budget=10),)
    """

    budget: int = 10
    goes_first: ClassVar[bool] = True
    fits: ClassVar[Mapping[str, float]] = {"unguarded operation": 0.4, "outlier batch": 0.6}

    def transform(self) -> Transform:
        """``SkipNonFinite``."""
        return SkipNonFinite(self.budget)


@dataclass(frozen=True)
class ClipOutliers(TransformRemedy):
    """Clip a step whose total norm stands out of the run's own history, and no other.

    Args:
        z_max: deviations above the mean.
        warmup: steps that set the first mean and deviation.

    Example:
        >>> from torch import nn
        >>> ClipOutliers(warmup=10).apply(Setup(nn.Linear(1, 1))).transforms
        (ZScoreClip(z_max=2.5, alpha=0.97, warmup=10, max_norm=None),)
    """

    z_max: float = 2.5
    warmup: int = 25
    fits: ClassVar[Mapping[str, float]] = {"outlier batch": 1.0, "learning rate too high": 0.2}

    def transform(self) -> Transform:
        """``ZScoreClip`` without a fixed bound."""
        return ZScoreClip(self.z_max, warmup=self.warmup, max_norm=None)
