"""Transforms made of transforms, and the plainest of them: a chain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from gradwatch.probe.layers import check_patterns, matches
from gradwatch.records import Kind
from gradwatch.transforms.transform import Outcome, Params, StepContext, Transform, as_transform


class Composed(Transform):
    """Hands everything on to its parts."""

    def check(self, names: Collection[str]) -> None:
        """Check the parts."""
        for part in self.parts:
            part.check(names)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states by position, of those that keep one."""
        states = {str(position): part.state_dict() for position, part in enumerate(self.parts)}
        return {position: state for position, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand each part its state."""
        unknown = set(state) - {str(position) for position in range(len(self.parts))}
        if unknown:
            raise ValueError(f"the state is of another chain: it has part {min(unknown)}, but here is {self!r}")
        for position, part in enumerate(self.parts):
            if str(position) in state:
                part.load_state_dict(state[str(position)])


@dataclass(frozen=True, init=False)
class Chain(Composed):
    """One transform after the other.

    The order matters: skip or zero what is not finite first, then normalize or clip, add noise last.

    Shapes: as the parts.

    Args:
        transforms: transforms, or functions of ``(params, context)``; at least one.

    Raises:
        ValueError: when the list is empty.
        TypeError: when an item is neither.

    Non-finite gradients: as the parts.
    Cost: the sum of the parts. State: that of the parts, by position.

    Example:
        >>> import torch
        >>> from gradwatch.transforms import Centralize, ClipByGlobalNorm
        >>> weight = torch.nn.Parameter(torch.zeros(1, 2))
        >>> weight.grad = torch.tensor([[2.0, 8.0]])
        >>> outcome = Chain([Centralize(), ClipByGlobalNorm(10.0)])({"weight": weight})
        >>> weight.grad
        tensor([[-3.,  3.]])

    References: ``optax.chain``.
    """

    transforms: tuple[Transform, ...]

    def __init__(self, transforms: Iterable[Transform | Callable[..., Any]]) -> None:
        object.__setattr__(self, "transforms", tuple(as_transform(item) for item in transforms))
        if not self.transforms:
            raise ValueError("the list of transforms is empty; expected at least one")

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transforms, in order."""
        return self.transforms

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome:
        """Apply each."""
        return Outcome.of_all([part(params, context) for part in self.transforms])


@dataclass(frozen=True)
class When(Composed):
    """Apply a transform only while a finding of a kind is open, as the monitor says.

    Use it to interfere no more than needed: ``When("exploding", ClipByGlobalNorm(1.0))``. The step that opens a finding
    was taken without the transform; on a CUDA device the next one or two are as well, as nobody waits for its numbers.
    In a plain loop, say what is open with a ``StepContext``.

    Shapes: as the transform.

    Args:
        kind: one of ``vanishing exploding nonfinite dead saturated stalled spike``.
        transform: a transform, or a function of ``(params, context)``.
        own_kind: the kind is that of a detector of your own, so that any name is taken.

    Raises:
        ValueError: when the kind is not known; when it is called without a context.

    Non-finite gradients: as the transform.
    Cost: nothing while no such finding is open. State: that of the transform.

    Example:
        >>> import torch
        >>> from gradwatch.transforms import ClipByValue
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> weight.grad = torch.tensor([4.0])
        >>> clip = When("exploding", ClipByValue(1.0))
        >>> clip({"weight": weight}, StepContext())
        >>> outcome = clip({"weight": weight}, StepContext(open_kinds=frozenset({"exploding"})))
        >>> weight.grad
        tensor([1.])

    References: ``optax.conditionally_transform``.
    """

    kind: str
    transform: Transform | Callable[..., Any]
    own_kind: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "transform", as_transform(self.transform))
        known = get_args(Kind)
        if not self.own_kind and self.kind not in known:
            raise ValueError(
                f"kind is {self.kind!r}; expected one of {', '.join(known)}; "
                "own_kind=True takes the kind of a detector of your own"
            )

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transform."""
        return (as_transform(self.transform),)

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Apply the transform if such a finding is open."""
        if context is None:
            raise ValueError(f"{self!r} has to know what is open: pass context=StepContext(open_kinds=...)")
        return self.parts[0](params, context) if self.kind in context.open_kinds else None


@dataclass(frozen=True)
class Only(Composed):
    """Apply a transform to the parameters whose names match a shell pattern, and to no others.

    Norms are then those of the matching parameters alone.

    Shapes: as the transform.

    Args:
        pattern: such as ``encoder.*`` or ``*.bias``; it has to match the whole name.
        transform: a transform, or a function of ``(params, context)``.

    Raises:
        ValueError: when the pattern matches no parameter. Among several optimizers it is enough if one has a match.

    Non-finite gradients: as the transform.
    Cost: that of the transform. State: that of the transform.

    Example:
        >>> import torch
        >>> from gradwatch.transforms import ClipByValue
        >>> layer = torch.nn.Linear(1, 1)
        >>> layer.weight.grad, layer.bias.grad = torch.tensor([[4.0]]), torch.tensor([4.0])
        >>> outcome = Only("*bias", ClipByValue(1.0))(dict(layer.named_parameters()))
        >>> layer.weight.grad, layer.bias.grad
        (tensor([[4.]]), tensor([1.]))

    References: ``optax.masked``.
    """

    pattern: str
    transform: Transform | Callable[..., Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transform", as_transform(self.transform))

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transform."""
        return (as_transform(self.transform),)

    def check(self, names: Collection[str]) -> None:
        """Raise a ValueError where the pattern matches none of the names."""
        check_patterns([self.pattern], names, "parameter")
        super().check([name for name in names if matches(name, [self.pattern])])

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Apply the transform to the matching parameters."""
        chosen = {name: param for name, param in params.items() if matches(name, [self.pattern])}
        if context is None:
            check_patterns([self.pattern], params, "parameter")
        return self.parts[0](chosen, context) if chosen else None
