"""Transforms made of other transforms: a chain, a condition, a choice of parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from gradwatch.probe.layers import check_patterns, matches
from gradwatch.records import Kind
from gradwatch.transforms.transform import Outcome, Params, StepContext, Transform, as_transform


class Composed(Transform):
    """Delegates checks and state to its parts."""

    def check(self, names: Collection[str]) -> None:
        """Check the names against each part."""
        for part in self.parts:
            part.check(names)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts that have one, by position."""
        states = {str(position): part.state_dict() for position, part in enumerate(self.parts)}
        return {position: state for position, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of each part."""
        if unknown := set(state) - {str(position) for position in range(len(self.parts))}:
            raise ValueError(f"the state is of another chain: it has a part {min(unknown)}, and {self!r} has none")
        for position, part in enumerate(self.parts):
            if str(position) in state:
                part.load_state_dict(state[str(position)])


class Conditional(Composed):
    """Applies its one transform under a condition."""

    transform: Transform | Callable[..., Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transform", as_transform(self.transform))

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transform."""
        return (as_transform(self.transform),)


@dataclass(frozen=True, init=False)
class Chain(Composed):
    """Apply one transform after the other.

    The order matters: skip or zero non-finite gradients first, then normalize or clip, and add noise last.

    Shapes: as the parts.

    Args:
        transforms: transforms, or functions of ``(params, context)``; at least one.

    Raises:
        ValueError: when the list is empty.
        TypeError: when an item is neither a transform nor a function.

    Non-finite gradients: as the parts.
    Cost: the sum of the parts. State: the states of the parts, by position.

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
        """Apply each part in order."""
        return Outcome.of_all([part(params, context) for part in self.transforms])


@dataclass(frozen=True)
class When(Conditional):
    """Apply a transform only while the monitor has an open finding of a given kind.

    Use it to interfere no more than needed: ``When("exploding", ClipByGlobalNorm(1.0))``. The step that opens the
    finding is not transformed. On CUDA neither are the next one or two, as measurements arrive asynchronously, without
    synchronizing. In a plain loop, pass the open kinds in a ``StepContext``.

    Shapes: as the transform.

    Args:
        kind: one of ``vanishing exploding nonfinite dead saturated stalled spike``.
        transform: a transform, or a function of ``(params, context)``.
        own_kind: accept any name as ``kind``, for a detector that you wrote yourself.

    Raises:
        ValueError: when the kind is unknown, or the transform is called without a context.

    Non-finite gradients: as the transform.
    Cost: nothing while no such finding is open. State: as the transform.

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
        super().__post_init__()
        known = get_args(Kind)
        if not self.own_kind and self.kind not in known:
            raise ValueError(
                f"kind is {self.kind!r}; expected one of {', '.join(known)}; "
                "own_kind=True accepts the kind of a detector that you wrote yourself"
            )

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Apply the transform if such a finding is open."""
        if context is None:
            raise ValueError(f"{self!r} needs the open findings: pass context=StepContext(open_kinds=...)")
        return self.parts[0](params, context) if self.kind in context.open_kinds else None


@dataclass(frozen=True)
class Only(Conditional):
    """Apply a transform only to the parameters whose names match a shell pattern.

    A global norm is then the norm of the matching parameters alone.

    Shapes: as the transform.

    Args:
        pattern: such as ``encoder.*`` or ``*.bias``; it must match the whole name.
        transform: a transform, or a function of ``(params, context)``.

    Raises:
        ValueError: when the pattern matches no parameter. With several optimizers, one match in any of them is enough.

    Non-finite gradients: as the transform.
    Cost: as the transform. State: as the transform.

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

    def check(self, names: Collection[str]) -> None:
        """Raise a ValueError if the pattern matches none of the names."""
        check_patterns([self.pattern], names, "parameter")
        super().check([name for name in names if matches(name, [self.pattern])])

    def __call__(self, params: Params, context: StepContext | None = None) -> Outcome | None:
        """Apply the transform to the matching parameters."""
        chosen = {name: param for name, param in params.items() if matches(name, [self.pattern])}
        if context is None:  # a plain loop: no callback has checked the pattern before
            check_patterns([self.pattern], params, "parameter")
        return self.parts[0](chosen, context) if chosen else None
