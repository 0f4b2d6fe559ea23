"""Transforms made of transforms, and the plainest of them: a chain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
