"""The interface of a transform: a callable that edits gradients in place, given a context, returning an outcome."""

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
    """Facts about a step beside its parameters. A plain loop has none and passes None.

    Attributes:
        step: index of the optimizer step.
        open_kinds: kinds of the open findings.
    """

    step: int = 0
    open_kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """The effect of a transform, as scalars that stay on the device until a logger reads them.

    Attributes:
        clipped: True if a bound was exceeded, a bool tensor without dimensions; None from a transform that is no clip.
        coefficient: the factor of all gradients; None where they have no common factor.
        skipped: True if the gradients were removed, so that the optimizer does not step.

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
        """Return the combined outcome of several transforms."""
        return functools.reduce(operator.and_, (outcome for outcome in outcomes if outcome is not None), Outcome())


def _both(combine: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return combine(a, b.to(a.device, non_blocking=True))


class Transform(ABC):
    """Edits ``param.grad`` of named parameters in place. A plain function of ``(params, context)`` works as well."""

    # No annotations here: jsonargparse resolves them in the module of each subclass, which need not import their names.
    elementwise = False
    """Each entry's result depends on that entry alone, so it is right for a gradient sharded in any way."""
    is_clip = False
    """It clips. Two clips side by side are refused, as the second is usually an accident."""
    parameters_only = False
    """It needs the weights or removes gradients, so it can't edit the gradient at a layer's output."""
    learns_bound = False
    """It clips by the run's own history, so a large share of clipped steps does not mean a high learning rate."""

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transforms inside this one."""
        return ()

    @abstractmethod
    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Edit the gradients of ``params``: those of the optimizer that steps, unscaled and accumulated."""

    def check(self, names: Collection[str]) -> None:  # noqa: B027 - most have no pattern to check
        """Raise a ValueError if a pattern matches none of these parameter names."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to continue bit for bit; empty for a stateless transform."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that ``state_dict`` returned."""
        if state:
            raise ValueError(
                f"{self!r} keeps no state, but got {sorted(state)} to load; is the state of another chain?"
            )


class GradientEdit(Transform):
    """A transform of ``Gradients``: each gradient once, as real and dense values, sharded or not.

    Subclass it and edit the gradients in ``edit``. Read no value back to the host there: that waits for the device.

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
        """Edit the gradients of ``params``; return None if there is no gradient."""
        with torch.no_grad():
            gradients = Gradients(params)
            return self.edit(gradients) if gradients.values else None

    @abstractmethod
    def edit(self, gradients: Gradients) -> Outcome | None:
        """Edit the gradients, of which there is at least one. Runs without gradient tracking."""


@dataclass(frozen=True)
class FunctionTransform(Transform):
    """Adapter from a plain function of ``(params, context)`` to a transform."""

    function: Callable[[Params, StepContext | None], Outcome | None]

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Call the function."""
        with torch.no_grad():
            outcome = self.function(params, context)
        return outcome if isinstance(outcome, Outcome) else None

    def __deepcopy__(self, memo: object) -> FunctionTransform:
        """Return itself: state inside the function's closure can't be copied from here."""
        return self


def as_transform(value: Any) -> Transform:
    """Return a transform unchanged, and a function as a transform; a TypeError for anything else."""
    if isinstance(value, Transform):
        return value
    if callable(value) and not isinstance(value, type):
        return FunctionTransform(value)
    if isinstance(value, type):
        got = f"the class {value.__name__}: make an object of it"
    else:
        got = f"{value!r} of type {type(value).__name__}"
    raise TypeError(f"expected a transform, or a function of (params, context); got {got}")


def walk(transform: Transform) -> Iterator[Transform]:
    """Yield the transform and, recursively, its parts.

    Example:
        >>> from gradwatch.transforms import Chain, ClipByNorm, Only
        >>> [type(part).__name__ for part in walk(Chain([Only("*", ClipByNorm(1.0))]))]
        ['Chain', 'Only', 'ClipByNorm']
    """
    yield transform
    for part in transform.parts:
        yield from walk(part)
