"""The interface of a remedy, and the set-up that it changes: a module, gradient transforms, Trainer options."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, overload

from torch import nn

from gradwatch.causes import causes_treated_by, fit_of
from gradwatch.short_runs.sandbox import copy_without_trainer


class NotApplicable(ValueError):
    """The remedy can't be applied here; the message says why, and what to write instead."""


class NothingToChange(NotApplicable):
    """The model has nothing that this remedy changes, so there is no code to write either."""


@dataclass(frozen=True)
class Setup:
    """A training set-up without a Trainer.

    Attributes:
        module: a LightningModule, or any module if only the model is to be changed.
        transforms: gradient transforms, run in order before each optimizer step.
        options: keyword arguments of the Trainer, such as ``gradient_clip_val`` and ``precision``.
        batch: a batch of training data; remedies read shapes, the order of the layers and the inputs' scale from it.

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
        """Return True if the module configures its own training, as a LightningModule does."""
        return callable(getattr(self.module, "configure_optimizers", None))

    def with_options(self, **options: Any) -> Setup:
        """Return a set-up with additional options of the Trainer."""
        return replace(self, options={**self.options, **options})

    def without_options(self, *names: str) -> Setup:
        """Return a set-up without these options of the Trainer."""
        return replace(self, options={name: value for name, value in self.options.items() if name not in names})

    def copy(self) -> Setup:
        """With a copy of the module and of the transforms; the batch is shared."""
        return replace(self, module=copy_of(self.module), transforms=copy.deepcopy(self.transforms))


def copy_of(module: nn.Module) -> nn.Module:
    """Return a deep copy that belongs to no Trainer.

    Raises:
        NotApplicable: when the module can't be copied.
    """
    try:
        return copy_without_trainer(module)
    except TypeError as error:
        raise NotApplicable(f"{error} Or take a new module that has not been trained.") from error


class Remedy(ABC):
    """One change of a model or its training, as a value whose repr shows all settings."""

    @overload
    def apply(self, target: Setup) -> Setup: ...

    @overload
    def apply(self, target: nn.Module) -> nn.Module: ...

    def apply(self, target: Setup | nn.Module) -> Setup | nn.Module:
        """Return a changed deep copy of a module or a :class:`Setup`; the original does not change.

        Raises:
            NotApplicable: when there is nothing to change, or only the user's own code can be changed.
        """
        if isinstance(target, Setup):
            return self.change(target.copy())
        changed = self.change(Setup(target).copy())
        if not self.changes_model and not changed.trains_itself:
            raise NotApplicable(f"{self} changes how a module is trained, not the module. Write: {self.code(target)}")
        return changed.module

    @property
    def changes_model(self) -> bool:
        """Return True if the remedy changes the module itself and not only its training."""
        return False

    @property
    def acts_after(self) -> int:
        """Return the optimizer steps before the remedy acts in full; a shorter trial does not show what it does."""
        return 0

    @abstractmethod
    def change(self, setup: Setup) -> Setup:
        """Change a set-up in place, whose module is already a copy, and return it."""

    @abstractmethod
    def patch(self, setup: Setup) -> str:
        """Return the code that makes this change by hand; it calls the module ``model``."""

    def code(self, module: nn.Module) -> str:
        """Return the patch for a module alone, without a batch or options."""
        return self.patch(Setup(module))

    @property
    def key(self) -> str:
        """Name in the table of advice, :mod:`gradwatch.causes`."""
        return type(self).__name__

    @property
    def treats(self) -> frozenset[str]:
        """Causes that the remedy treats."""
        return causes_treated_by(self.key)

    def fit_for(self, cause: str) -> float:
        """Return the effect on a cause: 1 removes it, less only reduces its effects, 0 does nothing."""
        return fit_of(self.key, cause)


class ModelRemedy(Remedy):
    """A remedy that changes the module itself and works with any training loop."""

    @property
    def changes_model(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True)
class Advice(Remedy):
    """A change that only the user can make: a sentence and the line to write.

    Args:
        cause: the cause that it treats.
        text: the advice.
        line: the code to write in the user's module.

    Example:
        >>> Advice("unguarded operation", "Add an epsilon under the root.", "x = (y + 1e-6).sqrt()").code(nn.ReLU())
        'x = (y + 1e-6).sqrt()'
    """

    cause: str
    text: str
    line: str = ""

    @property
    def sentence(self) -> str:
        """Sentence and line, without repeating a line that the sentence contains."""
        return self.text if not self.line or self.line in self.text else f"{self.text} {self.line}"

    def change(self, setup: Setup) -> Setup:
        """Raise NotApplicable."""
        raise NotApplicable(f"Only you can change this: {self.sentence}")

    def patch(self, setup: Setup) -> str:
        """Return the line, or the sentence if there is none."""
        return self.line or f"# {self.text}"

    @property
    def treats(self) -> frozenset[str]:
        """The one cause of this advice."""
        return frozenset({self.cause})

    def fit_for(self, cause: str) -> float:
        """Return 1 for the cause of this advice, else 0."""
        return float(cause == self.cause)


@dataclass(frozen=True)
class Combination(Remedy):
    """Several remedies, one after the other.

    Example:
        >>> from gradwatch.remedies import InitializeAgain, InsertNormalization
        >>> both = Combination((InsertNormalization(), InitializeAgain()))
        >>> changed = both.apply(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2)))
        >>> [type(layer).__name__ for layer in changed[0]]
        ['Linear', 'LayerNorm']
    """

    remedies: tuple[Remedy, ...]

    @property
    def changes_model(self) -> bool:
        """Return True if all parts do."""
        return all(remedy.changes_model for remedy in self.remedies)

    @property
    def acts_after(self) -> int:
        """Return the longest time among the parts."""
        return max((remedy.acts_after for remedy in self.remedies), default=0)

    def change(self, setup: Setup) -> Setup:
        """Apply each remedy in order."""
        for remedy in self.remedies:
            setup = remedy.change(setup)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return the patches, each for the model that the one before it leaves."""
        parts = []
        for remedy in self.remedies:
            parts.append(remedy.patch(setup))
            setup = remedy.apply(setup) if remedy.changes_model else setup
        return "\n".join(parts)

    def fit_for(self, cause: str) -> float:
        """Return the best fit among the parts."""
        return max((remedy.fit_for(cause) for remedy in self.remedies), default=0.0)
