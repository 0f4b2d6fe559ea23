"""What a transform is: a callable that edits gradients in place, what it may be told, and what it tells back."""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.transforms.gradients import Gradients

Params = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class StepContext:
    """What is known of a step beside its parameters. In a plain loop there is none, and a transform is given None.

    Attributes:
        step: index of the optimizer step.
        open_kinds: kinds of the findings that are open.
    """

    step: int = 0
    open_kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What a transform did, as scalars that stay on the device: reading them is up to whoever logs.

    Attributes:
        clipped: whether a bound was met, a bool of no dimension; None from what is no clip.
        coefficient: what all gradients were multiplied by; None where there is no such single number.
        skipped: the gradients were removed, so that the optimizer does not step.

    Example:
        >>> half = Outcome(torch.tensor(True), torch.tensor(0.5))
        >>> (half & Outcome(skipped=True) & half).coefficient
        tensor(0.2500)
    """

    clipped: Tensor | None = None
    coefficient: Tensor | None = None
    skipped: bool = False

    def __and__(self, other: Outcome) -> Outcome:
        clipped = _both(operator.or_, self.clipped, other.clipped)
        coefficient = _both(operator.mul, self.coefficient, other.coefficient)
        return Outcome(clipped, coefficient, self.skipped or other.skipped)

    @staticmethod
    def of_all(outcomes: Iterable[Outcome | None]) -> Outcome:
        """What several transforms did together."""
        return functools.reduce(operator.and_, (outcome for outcome in outcomes if outcome is not None), Outcome())


def _both(combine: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return combine(a, b.to(a.device, non_blocking=True))


class Transform(ABC):
    """Edits ``param.grad`` of named parameters in place; a plain function of ``(params, context)`` will do as well."""

    # Without annotations: they would have to mean something in the modules of all subclasses, where jsonargparse
    # looks their names up.
    elementwise = False
    """An entry's result depends on this entry alone, so that any way of sharding a gradient is right."""
    is_clip = False
    """It is one of the clips, which should not run beside another one by accident."""
    parameters_only = False
    """It needs the weights, or removes gradients, and so makes no sense for a gradient at a layer's output."""
    learns_bound = False
    """It clips by the run's own history: a large share of clipped steps is then no sign of a high learning rate."""

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transforms it is made of."""
        return ()

    @abstractmethod
    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Edit the gradients of ``params``: those of the optimizer that steps, unscaled and accumulated."""

    def check(self, names: Collection[str]) -> None:  # noqa: B027 - most have no pattern to check
        """Raise a ValueError where a pattern matches none of these parameter names."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit; empty where nothing is kept."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` gave."""
        if state:
            raise ValueError(f"{self!r} keeps no state, but was given {sorted(state)} to load; is it another chain's?")


class GradientEdit(Transform):
    """A transform that sees the gradients as ``Gradients``: once each, dense, real, whether sharded or not.

    To write one, say in ``edit`` what happens to them. Nothing there may read a value back to the host.

    Example:
        >>> class Halve(GradientEdit):
        ...     def edit(self, gradients):
        ...         gradients.scale_(torch.tensor(0.5))
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> layer.weight.grad = torch.tensor([[3.0]])
        >>> Halve()(dict(layer.named_parameters()))
        >>> layer.weight.grad
        tensor([[1.5000]])
    """

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Edit the gradients of ``params`` that are there."""
        with torch.no_grad():
            gradients = Gradients(params)
            return self.edit(gradients) if gradients.values else None

    @abstractmethod
    def edit(self, gradients: Gradients) -> Outcome | None:
        """Edit at least one gradient; called without gradient tracking."""


@dataclass(frozen=True)
class FunctionTransform(Transform):
    """A plain function of ``(params, context)`` as a transform."""

    function: Callable[[Params, StepContext | None], Outcome | None]

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Call the function."""
        with torch.no_grad():
            outcome = self.function(params, context)
        return outcome if isinstance(outcome, Outcome) else None

    def __deepcopy__(self, memo: object) -> FunctionTransform:
        """The same: what a function keeps is its own affair."""
        return self


def as_transform(value: Any) -> Transform:
    """A transform as it is, a function made one; anything else is a TypeError.

    Example:
        >>> as_transform(0.5)
        Traceback (most recent call last):
        TypeError: expected a transform, or a function of (params, context); got 0.5 of type float
    """
    if isinstance(value, Transform):
        return value
    if callable(value) and not isinstance(value, type):
        return FunctionTransform(value)
    what = f"the class {value.__name__}: make an object of it" if isinstance(value, type) else f"{value!r} of type "
    kind = "" if isinstance(value, type) else type(value).__name__
    raise TypeError(f"expected a transform, or a function of (params, context); got {what}{kind}")


def walk(transform: Transform) -> Iterator[Transform]:
    """The transform and all it is made of.

    Example:
        >>> from gradwatch.transforms import Chain, ClipByNorm, Only
        >>> [type(part).__name__ for part in walk(Chain([Only("*", ClipByNorm(1.0))]))]
        ['Chain', 'Only', 'ClipByNorm']
    """
    yield transform
    for part in transform.parts:
        yield from walk(part)
