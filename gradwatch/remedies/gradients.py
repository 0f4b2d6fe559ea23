"""Remedies that edit gradients before each optimizer step, by a transform or the Trainer's own clip."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from gradwatch.checks import require_positive
from gradwatch.remedies.remedy import NotApplicable, Remedy, Setup
from gradwatch.transforms import NormalizeByNorm, SkipNonFinite, Transform, ZScoreClip

CLIP = "gradient_clip_val"  # option of the Trainer


class TransformRemedy(Remedy):
    """A remedy that adds one transform to a set-up."""

    goes_first: ClassVar[bool] = False

    @abstractmethod
    def transform(self) -> Transform:
        """Return the transform to add."""

    def change(self, setup: Setup) -> Setup:
        """Add the transform, unless the set-up has one of its class."""
        new = self.transform()
        if any(isinstance(known, type(new)) for known in setup.transforms):
            raise NotApplicable(f"the transforms already contain a {type(new).__name__}: {setup.transforms}")
        return replace(setup, transforms=(new, *setup.transforms) if self.goes_first else (*setup.transforms, new))

    def patch(self, setup: Setup) -> str:
        """Return the callback, or the line of a loop."""
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
    """Scale every parameter's gradient to the same norm, so that a vanishing one moves its weights too.

    The direction of a tiny gradient stays noisy, and steps no longer get smaller near the optimum.

    Args:
        norm: norm of each parameter's gradient, positive.

    Example:
        >>> from torch import nn
        >>> NormalizeGradients().apply(Setup(nn.Linear(1, 1))).transforms
        (NormalizeByNorm(target=1.0, by_layer=False, eps=1e-12),)
    """

    norm: float = 1.0

    def transform(self) -> Transform:
        """Return ``NormalizeByNorm``."""
        return NormalizeByNorm(self.norm)


@dataclass(frozen=True)
class SkipBadSteps(TransformRemedy):
    """Skip the steps whose gradient contains NaN or Inf; their batches are not learned from.

    Args:
        budget: number of consecutive steps that may be skipped.

    Example:
        >>> from torch import nn
        >>> SkipBadSteps().apply(Setup(nn.Linear(1, 1))).transforms
        (SkipNonFinite(budget=10),)
    """

    budget: int = 10
    goes_first: ClassVar[bool] = True  # a transform before it would compute with NaN

    def transform(self) -> Transform:
        """Return ``SkipNonFinite``."""
        return SkipNonFinite(self.budget)


@dataclass(frozen=True)
class ClipOutliers(TransformRemedy):
    """Clip only steps whose total norm is an outlier in the run's own history.

    Args:
        z_max: largest distance from the mean, in standard deviations.
        warmup: number of steps that set the first mean and deviation.

    Example:
        >>> from torch import nn
        >>> ClipOutliers(warmup=10).apply(Setup(nn.Linear(1, 1))).transforms
        (ZScoreClip(z_max=2.5, alpha=0.97, warmup=10, max_norm=None),)
    """

    z_max: float = 2.5
    warmup: int = 25

    @property
    def acts_after(self) -> int:
        """Return the steps that only set the first mean and deviation."""
        return self.warmup

    def transform(self) -> Transform:
        """Return ``ZScoreClip`` without a fixed bound."""
        return ZScoreClip(self.z_max, warmup=self.warmup, max_norm=None)


@dataclass(frozen=True)
class Clip(Remedy):
    """Clip the norm of all gradients together, by the Trainer's own option.

    Use it against gradients that explode now and then. It never makes a gradient larger, so it does not help against
    vanishing ones.

    Args:
        max_norm: bound, positive. A good one is the 90th percentile of a healthy run's norms.

    Raises:
        ValueError: for a bound that is not positive.

    Example:
        >>> from torch import nn
        >>> Clip(0.5).apply(Setup(nn.Linear(1, 1))).options
        {'gradient_clip_val': 0.5}

    References: Pascanu, Mikolov, Bengio, 2013, https://arxiv.org/abs/1211.5063; for the percentile the Deep Learning
    Tuning Playbook, https://github.com/google-research/tuning_playbook.
    """

    max_norm: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, max_norm=self.max_norm)

    def change(self, setup: Setup) -> Setup:
        """Set the option."""
        known = setup.options.get(CLIP)
        if known is not None and 0 < known <= self.max_norm:
            raise NotApplicable(f"the Trainer already clips at {known}, which is not above {self.max_norm}")
        if getattr(setup.module, "automatic_optimization", True) is False:
            raise NotApplicable(
                "with manual optimization the Trainer does not clip; in training_step, write "
                f"self.clip_gradients(optimizer, gradient_clip_val={self.max_norm})"
            )
        return setup.with_options(**{CLIP: self.max_norm})

    def patch(self, setup: Setup) -> str:
        """Return the Trainer's argument, or the line of a loop."""
        if setup.trains_itself:
            return f"trainer = Trainer(gradient_clip_val={self.max_norm})"
        return f"torch.nn.utils.clip_grad_norm_(model.parameters(), {self.max_norm})"


@dataclass(frozen=True)
class RemoveClip(Remedy):
    """Remove a clip that takes effect on nearly every step and leaves too little of the gradient.

    Example:
        >>> from torch import nn
        >>> RemoveClip().apply(Setup(nn.Linear(1, 1), options={"gradient_clip_val": 1e-4})).options
        {}
    """

    def change(self, setup: Setup) -> Setup:
        """Remove the option and the transforms that clip."""
        kept = tuple(transform for transform in setup.transforms if not getattr(transform, "is_clip", False))
        if not setup.options.get(CLIP) and len(kept) == len(setup.transforms):
            raise NotApplicable(
                "neither the Trainer's options nor the transforms contain a clip; remove the one in your own code, "
                "such as clip_grad_norm_ or configure_gradient_clipping"
            )
        return replace(setup, transforms=kept).without_options(CLIP, "gradient_clip_algorithm")

    def patch(self, setup: Setup) -> str:
        """Return the Trainer's argument."""
        return "trainer = Trainer(gradient_clip_val=None)"
