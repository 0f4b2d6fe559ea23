"""Remedies that insert normalization layers, set their weights to 1, or move those of transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradwatch.checks import require_one_of
from gradwatch.layer_kinds import is_linear, is_normalization, is_weighted, weight_outputs_first
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Setup
from gradwatch.remedies.surgery import construction_of, is_inside, path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of

Kind = Literal["auto", "layer", "batch", "group"]
KINDS = ("auto", "layer", "batch", "group")
ENOUGH_SAMPLES = 8  # of a batch, for its statistics not to be too noisy: Wu and He, Group normalization, 2018, figure 1
_FEWEST_UNITS = 4  # over two features LayerNorm keeps only a sign
_OWN_ORDER = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class InsertNormalization(ModelRemedy):
    """Insert a normalization layer after each hidden Linear and convolution that has none.

    Signals then have the same size at every depth, and gradients are divided by the size before. ``"auto"`` inserts
    LayerNorm after a Linear; after a convolution BatchNorm, or GroupNorm if a batch has fewer than 8 samples. With
    BatchNorm, samples of a batch depend on each other and evaluation differs from training.

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

    def __post_init__(self) -> None:
        require_one_of(self, KINDS, kind=self.kind)

    def change(self, setup: Setup) -> Setup:
        """Wrap each layer with its norm."""
        for event in self._without_norm(setup):
            layer: Any = event.module
            norm = self._norm_for(event).to(layer.weight.device, layer.weight.dtype)
            replace_module(setup.module, event.name, nn.Sequential(layer, norm))
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line a layer."""
        lines = []
        for event in self._without_norm(setup):
            path = path_of(setup.module, event.name)
            lines.append(f"{path} = nn.Sequential({path}, {construction_of(self._norm_for(event))})")
        return "\n".join(lines)

    def _without_norm(self, setup: Setup) -> list[Event]:
        root, events = setup.module, events_of(setup.module, setup.batch)
        last = max((index for index, event in enumerate(events) if event.is_weighted), default=0)
        found: dict[int, Event] = {}
        for index, event in enumerate(events[:last]):
            if self._can_follow(root, event) and not _is_normalized(events[index + 1 :]):
                found.setdefault(id(event.module), event)
        if not found:
            raise NotApplicable(
                f"{type(root).__name__} has no hidden Linear or convolution without a normalization layer after it; "
                "write nn.LayerNorm after your own layers"
            )
        return [*found.values()]

    def _can_follow(self, root: nn.Module, event: Event) -> bool:
        if not event.is_weighted or event.name == "" or is_inside(root, event.name, _OWN_ORDER):
            return False
        if self.kind == "batch" and is_linear(event.module) and _dimensions(event) not in (2, None):
            return False  # of a sequence, BatchNorm1d would read time steps as features
        if self.kind == "batch" and _samples(event) < ENOUGH_SAMPLES:
            return False
        return _units(event.module) >= _FEWEST_UNITS

    def _norm_for(self, event: Event) -> nn.Module:
        units = _units(event.module)
        if is_linear(event.module):
            return nn.BatchNorm1d(units) if self.kind == "batch" else nn.LayerNorm(units)
        if self.kind in ("group", "layer") or (self.kind == "auto" and _samples(event) < ENOUGH_SAMPLES):
            divisors = [groups for groups in range(1, units // 2 + 1) if units % groups == 0 and groups <= 32]
            return nn.GroupNorm(1 if self.kind == "layer" else max(divisors), units)
        dimensions = len(getattr(event.module, "kernel_size", (1,)))
        made: nn.Module = getattr(nn, f"BatchNorm{dimensions}d")(units)
        return made


@dataclass(frozen=True)
class ResetNormalization(ModelRemedy):
    """Set the weights of normalization layers that start near zero to 1.

    A loop that draws all weights with a deviation of 0.02 draws those of the normalization layers too. What comes out
    of each is then 50 times too small. At zero nothing passes, unless a skip connection goes around.

    Args:
        below: root mean square under which a layer's weights are set.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        >>> _ = nn.init.normal_(network[1].weight, 0.0, 0.02)
        >>> ResetNormalization().apply(network)[1].weight.tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> print(ResetNormalization().code(network))
        nn.init.ones_(model[1].weight)
    """

    below: float = 0.1

    def change(self, setup: Setup) -> Setup:
        """Set the weights."""
        for name in self._small(setup.module):
            nn.init.ones_(setup.module.get_submodule(name).get_parameter("weight"))
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line a layer."""
        return "\n".join(f"nn.init.ones_({path_of(setup.module, n)}.weight)" for n in self._small(setup.module))

    def _small(self, root: nn.Module) -> list[str]:
        norms = [(name, part) for name, part in root.named_modules() if is_normalization(part)]
        weights = [(name, weight) for name, part in norms if isinstance(weight := _weight_of(part), nn.Parameter)]
        found = [name for name, weight in weights if float(weight.detach().square().mean().sqrt()) < self.below]
        if not found:
            raise NothingToChange(f"{type(root).__name__} has no normalization layer with weights near zero")
        return found


def starts_faint(root: nn.Module) -> bool:
    """Return True if weights of a normalization layer are near zero, but not at zero, where they start on purpose.

    Example:
        >>> norm = nn.LayerNorm(4)
        >>> _ = nn.init.constant_(norm.weight, 0.01)
        >>> starts_faint(norm), starts_faint(nn.LayerNorm(4))
        (True, False)
    """
    weights = [_weight_of(part) for part in root.modules() if is_normalization(part)]
    sizes = [float(w.detach().square().mean().sqrt()) for w in weights if isinstance(w, nn.Parameter)]
    return any(0 < size < ResetNormalization.below for size in sizes)


def _weight_of(part: nn.Module) -> object:
    weight = getattr(part, "weight", None)
    return None if isinstance(weight, nn.Parameter) and is_lazy(weight) else weight


@dataclass(frozen=True)
class NormalizeFirst(ModelRemedy):
    """Move the LayerNorm of torch's transformer layers before attention and feed-forward: Pre-LN.

    After them (Post-LN, as first published and torch's default) the gradient near the output is large at the start, so
    training needs a warm-up. With Pre-LN it does not, but a trained Post-LN model has to be trained again.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> NormalizeFirst().apply(nn.Sequential(layer))[0].norm_first
        True

    References: Xiong et al., On layer normalization in the transformer architecture, 2020,
    https://arxiv.org/abs/2002.04745.
    """

    def change(self, setup: Setup) -> Setup:
        """Set ``norm_first``."""
        for name in self._names(setup.module):
            layer: Any = setup.module.get_submodule(name)
            layer.norm_first = True
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line a layer."""
        return "\n".join(f"{path_of(setup.module, name)}.norm_first = True" for name in self._names(setup.module))

    def _names(self, root: nn.Module) -> list[str]:
        kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        found = [name for name, layer in root.named_modules() if isinstance(layer, kinds) and not layer.norm_first]
        if not found:
            raise NotApplicable(f"{type(root).__name__} has no transformer layer of torch with norm_first=False")
        return found


def has_normalization(root: nn.Module) -> bool:
    """Return True if a network has a normalization layer for every four Linears and convolutions, as transformers do.

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
    """Return the number of samples in the recorded batch; infinity if no pass was recorded."""
    return len(event.output) if isinstance(event.output, torch.Tensor) and event.output.dim() else math.inf


def _is_normalized(events: list[Event]) -> bool:
    """Return True if a norm comes before the next weighted layer."""
    found = next((event.module for event in events if event.is_weighted or is_normalization(event.module)), None)
    return is_normalization(found)
