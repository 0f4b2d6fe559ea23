"""What every remedy is: which causes it treats, how it is applied, and what a user would write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from torch import nn

from gradwatch.remedies.setup import NotApplicable, Setup


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
