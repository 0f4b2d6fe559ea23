"""A bound on the gradient's norm, or none where the bound takes too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from gradwatch.remedies.remedy import Remedy
from gradwatch.remedies.setup import NotApplicable, Setup

CLIP = "gradient_clip_val"
_OPTIONS = (CLIP, "gradient_clip_algorithm")


@dataclass(frozen=True)
class Clip(Remedy):
    """Clip the norm of all gradients together, by the Trainer's own option.

    Use it against gradients that explode now and then. It only ever makes a gradient smaller: it cures none that
    vanishes.

    Args:
        max_norm: bound, positive. The 90th percentile of a healthy run's norms is a good one.

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
    fits: ClassVar[Mapping[str, float]] = {
        "outlier batch": 0.8,
        "learning rate too high": 0.6,
        "unscaled target": 0.5,
        "unscaled input": 0.4,
        "initialization too large": 0.4,
        "recurrent depth": 0.4,
        "missing warm-up": 0.5,
    }

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"max_norm is {self.max_norm!r}; expected a number above 0")

    def change(self, setup: Setup) -> Setup:
        """Set the option."""
        known = setup.options.get(CLIP)
        if known is not None and 0 < known <= self.max_norm:
            raise NotApplicable(f"the Trainer clips at {known} already, which is not above {self.max_norm}")
        if getattr(setup.module, "automatic_optimization", True) is False:
            raise NotApplicable(
                "with manual optimization the Trainer clips nothing; in training_step, write "
                f"self.clip_gradients(optimizer, gradient_clip_val={self.max_norm})"
            )
        return setup.with_options(**{CLIP: self.max_norm})

    def patch(self, setup: Setup) -> str:
        """The Trainer's argument, or the line of a loop."""
        if setup.trains_itself:
            return f"trainer = Trainer(gradient_clip_val={self.max_norm})"
        return f"torch.nn.utils.clip_grad_norm_(model.parameters(), {self.max_norm})"


@dataclass(frozen=True)
class RemoveClip(Remedy):
    """Take the clip away, where it meets its bound on nearly every step and leaves too little of the gradient.

    Example:
        >>> from torch import nn
        >>> RemoveClip().apply(Setup(nn.Linear(1, 1), options={"gradient_clip_val": 1e-4})).options
        {}
    """

    fits: ClassVar[Mapping[str, float]] = {"clipping too hard": 1.0}

    def change(self, setup: Setup) -> Setup:
        """Drop the option and the transforms that clip."""
        kept = tuple(transform for transform in setup.transforms if not _clips(transform))
        if not setup.options.get(CLIP) and len(kept) == len(setup.transforms):
            raise NotApplicable(
                "neither the Trainer's options nor the transforms hold a clip; remove the one in your own code, "
                "such as clip_grad_norm_ or configure_gradient_clipping"
            )
        return replace(setup, transforms=kept).without_options(*_OPTIONS)

    def patch(self, setup: Setup) -> str:
        """The Trainer's argument."""
        return "trainer = Trainer(gradient_clip_val=None)"


def _clips(transform: Any) -> bool:
    return bool(getattr(transform, "is_clip", False))
