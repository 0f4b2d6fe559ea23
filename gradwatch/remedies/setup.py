"""What a remedy is applied to: a module, its gradient transforms, the options of its Trainer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn


class NotApplicable(ValueError):
    """A remedy can't be applied here; the message says why, and what to write instead."""


class NothingToChange(NotApplicable):
    """What a remedy changes is not there, so that there is nothing to write either."""


@dataclass(frozen=True)
class Setup:
    """A training set-up, free of any trainer.

    Attributes:
        module: a LightningModule, or any module where only the model is changed.
        transforms: gradient transforms, run before each optimizer step, in order.
        options: keyword arguments of the Trainer, such as ``gradient_clip_val`` and ``precision``.
        batch: a batch of training data, by which a remedy sees shapes, the order of the layers and the inputs' scale.

    Example:
        >>> Setup(nn.Linear(2, 1)).with_options(precision="bf16-mixed").options
        {'precision': 'bf16-mixed'}
    """

    module: nn.Module
    transforms: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: Any = field(default=None, repr=False)

    @property
    def trains_itself(self) -> bool:
        """Whether the module says how it is trained, as a LightningModule does."""
        return callable(getattr(self.module, "configure_optimizers", None))

    def with_options(self, **options: Any) -> Setup:
        """With further options of the Trainer."""
        return replace(self, options={**self.options, **options})

    def without_options(self, *names: str) -> Setup:
        """Without these options of the Trainer."""
        return replace(self, options={name: value for name, value in self.options.items() if name not in names})

    def copy(self) -> Setup:
        """With a copy of the module and of the transforms; the batch is shared."""
        return replace(self, module=copy_of(self.module), transforms=copy.deepcopy(self.transforms))


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy that belongs to no Trainer: one that has fitted it would be copied too, data and all.

    Raises:
        NotApplicable: when the module can't be copied.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> copy_of(layer).weight is layer.weight, bool((copy_of(layer).weight == layer.weight).all())
        (False, True)
    """
    owners = (getattr(part, name, None) for part in module.modules() for name in ("_trainer", "_fabric"))
    memo: dict[int, Any] = {id(owner): None for owner in owners if owner is not None}
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise NotApplicable(
            f"{type(module).__name__} can't be copied ({error}). Apply remedies to a new one that has not been trained"
        ) from error
