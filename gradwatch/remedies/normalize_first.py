"""Pre-LN in the place of Post-LN in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from gradwatch.remedies.remedy import ModelRemedy
from gradwatch.remedies.setup import NotApplicable, Setup
from gradwatch.remedies.surgery import lines_for, path_of


@dataclass(frozen=True)
class NormalizeFirst(ModelRemedy):
    """Move the LayerNorm of torch's transformer layers in front of attention and feed-forward: Pre-LN.

    Behind them (Post-LN, as first published and torch's default) the gradient near the output is large at the start,
    so that training needs a warm-up; in front, it does not.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> NormalizeFirst().apply(nn.Sequential(layer))[0].norm_first
        True

    References: Xiong et al., On layer normalization in the transformer architecture, 2020,
    https://arxiv.org/abs/2002.04745.
    """

    fits: ClassVar[Mapping[str, float]] = {
        "missing warm-up": 0.9,
        "missing normalization or skip": 0.8,
        "learning rate too high": 0.2,
    }

    def change(self, setup: Setup) -> Setup:
        """Set ``norm_first``."""
        for name in self._names(setup.module):
            layer: Any = setup.module.get_submodule(name)
            layer.norm_first = True
        return setup

    def patch(self, setup: Setup) -> str:
        """One line a layer."""
        return lines_for(self._names(setup.module), lambda name: f"{path_of(setup.module, name)}.norm_first = True")

    def _names(self, root: nn.Module) -> list[str]:
        kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        found = [name for name, layer in root.named_modules() if isinstance(layer, kinds) and not layer.norm_first]
        if not found:
            raise NotApplicable(f"{type(root).__name__} has no transformer layer of torch with norm_first=False")
        return found
