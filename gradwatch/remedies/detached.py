"""Parts that get no gradient because they were frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gradwatch.remedies.remedy import ModelRemedy
from gradwatch.remedies.setup import NotApplicable, Setup


@dataclass(frozen=True)
class UnfreezeAll(ModelRemedy):
    """Let every parameter learn. Where a part is frozen on purpose, this is no remedy.

    Example:
        >>> layer = nn.Linear(2, 1).requires_grad_(False)
        >>> UnfreezeAll().apply(layer).weight.requires_grad
        True
    """

    fits: ClassVar[Mapping[str, float]] = {"frozen or detached part": 1.0}

    def change(self, setup: Setup) -> Setup:
        """Require gradients."""
        for param in _frozen(setup.module).values():
            param.requires_grad_(True)
        return setup

    def patch(self, setup: Setup) -> str:
        """One line."""
        return f"model.requires_grad_(True)  # {len(_frozen(setup.module))} parameters are frozen"


def _frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    params = dict(module.named_parameters())
    frozen = {name: p for name, p in params.items() if not p.requires_grad and p.is_floating_point()}
    if not frozen:
        raise NotApplicable(
            f"every parameter of {type(module).__name__} requires a gradient; one that gets none is cut off in "
            "forward: remove the detach(), no_grad() or .data there"
        )
    return frozen
