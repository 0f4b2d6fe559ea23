"""What a remedy is applied to: a module, its gradient transforms, the options of its Trainer."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, overload

from torch import nn

from gradwatch.short_runs.sandbox import copy_without_trainer


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
    """Return a deep copy that belongs to no Trainer.

    Raises:
        NotApplicable: when the module can't be copied.
    """
    try:
        return copy_without_trainer(module)
    except TypeError as error:
        raise NotApplicable(f"{error} Or take a new module that has not been trained.") from error


class Remedy(ABC):
    """One change of a model or its training, as a value: its repr says all of its settings.

    ``fits`` holds the causes it treats and how directly: 1 removes the cause, less only eases what comes of it.
    """

    fits: ClassVar[Mapping[str, float]] = {}
    treats: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.treats = frozenset(cls.fits)

    @overload
    def apply(self, target: Setup) -> Setup: ...

    @overload
    def apply(self, target: nn.Module) -> nn.Module: ...

    def apply(self, target: Setup | nn.Module) -> Setup | nn.Module:
        """A changed deep copy of a module or a :class:`Setup`; the original stays as it is.

        Raises:
            NotApplicable: when there is nothing to change, or it can't be changed from outside.
        """
        if isinstance(target, Setup):
            return self.change(target.copy())
        changed = self.change(Setup(target).copy())
        if not self.changes_model and not changed.trains_itself:
            raise NotApplicable(f"{self} changes how a module is trained, not the module. Write: {self.code(target)}")
        return changed.module

    @property
    def changes_model(self) -> bool:
        """Whether it changes the module itself, whatever trains it."""
        return False

    @abstractmethod
    def change(self, setup: Setup) -> Setup:
        """Change a set-up whose module is a copy already."""

    @abstractmethod
    def patch(self, setup: Setup) -> str:
        """The code that a user would write, in the names of the module, which it calls ``model``."""

    def code(self, module: nn.Module) -> str:
        """The patch for a module of which nothing more is known."""
        return self.patch(Setup(module))

    def fit_for(self, cause: str) -> float:
        """How directly it treats a cause, 0 to 1."""
        return self.fits.get(cause, 0.0)


class ModelRemedy(Remedy):
    """A remedy that changes the module itself, whatever trains it."""

    @property
    def changes_model(self) -> bool:
        """It does."""
        return True


@dataclass(frozen=True)
class Advice(Remedy):
    """What can't be done from outside: a sentence and the line to write.

    Args:
        cause: what it treats.
        text: what to do.
        line: the code, as it would stand in the user's module.

    Example:
        >>> Advice("unguarded operation", "Add an epsilon under the root.", "x = (y + 1e-6).sqrt()").code(nn.ReLU())
        'x = (y + 1e-6).sqrt()'
    """

    cause: str
    text: str
    line: str = ""

    @property
    def told(self) -> str:
        """Sentence and line; the line once, where the sentence holds it."""
        return self.text if not self.line or self.line in self.text else f"{self.text} {self.line}"

    def change(self, setup: Setup) -> Setup:
        """It can't."""
        raise NotApplicable(f"This is for you to change: {self.told}")

    def patch(self, setup: Setup) -> str:
        """The line; where there is none, the sentence."""
        return self.line or f"# {self.text}"

    def fit_for(self, cause: str) -> float:
        """An advice treats one cause."""
        return 1.0 if cause == self.cause else 0.0


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
        """Whether all parts do."""
        return all(remedy.changes_model for remedy in self.remedies)

    def change(self, setup: Setup) -> Setup:
        """Change by each."""
        for remedy in self.remedies:
            setup = remedy.change(setup)
        return setup

    def patch(self, setup: Setup) -> str:
        """The patches, each for what the one before it leaves behind."""
        parts = []
        for remedy in self.remedies:
            parts.append(remedy.patch(setup))
            setup = remedy.apply(setup) if remedy.changes_model else setup
        return "\n".join(parts)

    def fit_for(self, cause: str) -> float:
        """The best of the parts."""
        return max((remedy.fit_for(cause) for remedy in self.remedies), default=0.0)
