"""Normalization layers behind Linears and convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from gradwatch.layer_kinds import is_linear, is_normalization, is_weighted, weight_outputs_first
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import construction_of, is_inside, lines_for, path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of

Kind = Literal["auto", "layer", "batch", "group"]
KINDS = ("auto", "layer", "batch", "group")
ENOUGH_SAMPLES = 8  # a batch's statistics are too noisy below it: Wu and He, Group normalization, 2018, figure 1
_FEWEST_UNITS = 4  # over two features LayerNorm leaves but a sign
_OWN_ORDER = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class InsertNormalization(ModelRemedy):
    """Put a normalization layer behind each hidden Linear and convolution that has none.

    Signals then have one size at every depth, and the gradient is divided by the size that was there. ``"auto"`` takes
    LayerNorm behind a Linear; behind a convolution BatchNorm, or GroupNorm where a batch has less than 8 samples.

    Args:
        kind: ``"auto"``, ``"layer"``, ``"batch"`` or ``"group"``.

    Raises:
        ValueError: for another kind.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
        >>> InsertNormalization("batch").apply(network)[0][1].num_features
        8
        >>> print(InsertNormalization().code(network))
        model[0] = nn.Sequential(model[0], nn.LayerNorm(8))

    References: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167; Ba, Kiros, Hinton, 2016,
    https://arxiv.org/abs/1607.06450; Wu and He, 2018, https://arxiv.org/abs/1803.08494.
    """

    kind: Kind = "auto"
    fits: ClassVar[Mapping[str, float]] = {
        "saturating activation": 0.8,
        "initialization too small": 0.7,
        "initialization too large": 0.7,
        "missing normalization or skip": 0.9,
        "dead ReLU": 0.6,
        "unscaled input": 0.5,
        "learning rate too high": 0.3,
    }

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected one of {', '.join(map(repr, KINDS))}")

    def change(self, setup: Setup) -> Setup:
        """Wrap each layer with its norm."""
        for event in self._bare(setup.module, events_of(setup.module, setup.batch)):
            layer: Any = event.module
            norm = self._norm_for(event).to(layer.weight.device, layer.weight.dtype)
            replace_module(setup.module, event.name, nn.Sequential(layer, norm))
        return setup

    def patch(self, setup: Setup) -> str:
        """One line a layer."""
        bare = self._bare(setup.module, events_of(setup.module, setup.batch))
        norms = {event.name: self._norm_for(event) for event in bare}
        paths = {name: path_of(setup.module, name) for name in norms}
        return lines_for(
            [*norms],
            lambda name: f"{paths[name]} = nn.Sequential({paths[name]}, {construction_of(norms[name])})",
        )

    def _bare(self, root: nn.Module, events: list[Event]) -> list[Event]:
        found: dict[int, Event] = {}
        for index, event in enumerate(events[: _last_weighted(events)]):
            if self._can_follow(root, event) and not _is_normalized(events[index + 1 :]):
                found.setdefault(id(event.module), event)
        if not found:
            raise NotApplicable(
                f"{type(root).__name__} has no hidden Linear or convolution without a normalization layer behind it; "
                "put nn.LayerNorm behind your own layers"
            )
        return [*found.values()]

    def _can_follow(self, root: nn.Module, event: Event) -> bool:
        if not event.is_weighted or event.name == "" or is_inside(root, event.name, _OWN_ORDER):
            return False
        if self.kind == "batch" and is_linear(event.module) and _dimensions(event) not in (2, None):
            return False  # BatchNorm1d takes the last dimension of a sequence for its length
        if self.kind == "batch" and _samples(event) < ENOUGH_SAMPLES:
            return False
        return _units(event.module) >= _FEWEST_UNITS

    def _norm_for(self, event: Event) -> nn.Module:
        units = _units(event.module)
        if is_linear(event.module):
            return nn.BatchNorm1d(units) if self.kind == "batch" else nn.LayerNorm(units)
        if self.kind in ("group", "layer") or (self.kind == "auto" and _samples(event) < ENOUGH_SAMPLES):
            groups = (
                1 if self.kind == "layer" else max(g for g in range(1, units // 2 + 1) if units % g == 0 and g <= 32)
            )
            return nn.GroupNorm(groups, units)
        dimensions = len(getattr(event.module, "kernel_size", (1,)))
        made: nn.Module = getattr(nn, f"BatchNorm{dimensions}d")(units)
        return made


def has_normalization(root: nn.Module) -> bool:
    """Whether a network has a normalization layer for every four Linears and convolutions, as transformers have.

    Example:
        >>> has_normalization(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
        True
    """
    norms, weighted = (sum(map(is_kind, root.modules())) for is_kind in (is_normalization, is_weighted))
    return norms > 0 and 4 * norms >= weighted


def _units(layer: Any) -> int:
    return len(weight_outputs_first(layer)) if is_linear(layer) else int(layer.out_channels)


def _dimensions(event: Event) -> int | None:
    return event.output.dim() if isinstance(event.output, torch.Tensor) else None


def _samples(event: Event) -> float:
    """Samples of the batch that was traced; more than enough where none was."""
    return len(event.output) if isinstance(event.output, torch.Tensor) and event.output.dim() else math.inf


def _last_weighted(events: list[Event]) -> int:
    return max((index for index, event in enumerate(events) if event.is_weighted), default=0)


def _is_normalized(events: list[Event]) -> bool:
    """Whether a norm comes before the next weighted layer."""
    for event in events:
        if is_normalization(event.module):
            return True
        if event.is_weighted:
            return False
    return False


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
