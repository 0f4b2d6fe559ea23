"""Inputs at mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradwatch.remedies.remedy import ModelRemedy
from gradwatch.remedies.scaling import Standardize
from gradwatch.remedies.setup import NotApplicable, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of


@dataclass(frozen=True)
class RescaleInputs(ModelRemedy):
    """Put a layer in front of the first Linear, convolution or recurrent network that standardizes its input.

    Args:
        mean, std: of the inputs; where they are not given, each feature's (or channel's) is measured on the
            :class:`Setup`'s batch.

    Raises:
        ValueError: when only one is given, or ``std`` is not positive.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1))
        >>> RescaleInputs(mean=100.0, std=50.0).apply(network)[0][0].std
        tensor(50.)

    References: LeCun, Bottou, Orr, Mueller, Efficient BackProp, 1998, section 4.3.
    """

    mean: float | None = None
    std: float | None = None
    fits: ClassVar[Mapping[str, float]] = {"unscaled input": 1.0, "dead ReLU": 0.4, "saturating activation": 0.3}

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean is {self.mean!r} and std is {self.std!r}; expected both, or neither")
        if self.std is not None and not self.std > 0:
            raise ValueError(f"std is {self.std!r}; expected a number above 0")

    def change(self, setup: Setup) -> Setup:
        """Wrap the first layer."""
        first = _first(setup.module, events_of(setup.module, setup.batch))
        layer: Any = first.module
        home = next(layer.parameters())
        scaling = self._scaling(first).to(home.device)
        replace_module(setup.module, first.name, nn.Sequential(scaling, layer))
        return setup

    def patch(self, setup: Setup) -> str:
        """Two lines; the statistics are those of your training data."""
        first = _first(setup.module, events_of(setup.module, setup.batch))
        path = path_of(setup.module, first.name)
        dim = f", dim={_feature_dim(first)}" if _feature_dim(first) != -1 else ""
        made = f"of(inputs{dim})" if self.mean is None else f"({self.mean}, {self.std})"
        call = f"Standardize.{made}" if self.mean is None else f"Standardize{made}"
        return f"from gradwatch.remedies import Standardize\n{path} = nn.Sequential({call}, {path})"

    def _scaling(self, first: Event) -> Standardize:
        if self.mean is not None and self.std is not None:
            return Standardize(self.mean, self.std)
        inputs = first.inputs[0] if first.inputs else None
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise NotApplicable(
                "the inputs' mean and deviation are not known; give a batch (Setup(module, batch=batch)), or "
                "RescaleInputs(mean=..., std=...)"
            )
        if not bool(torch.isfinite(inputs).all()):
            raise NotApplicable("the batch holds NaN or Inf, which no scale mends: clean the data first")
        return Standardize.of(inputs, _feature_dim(first))


def _first(root: nn.Module, events: list[Event]) -> Event:
    kinds = (nn.RNNBase, nn.Embedding, nn.EmbeddingBag)
    first = next((event for event in events if event.is_weighted or isinstance(event.module, kinds)), None)
    if first is None or first.name == "" or isinstance(first.module, (nn.Embedding, nn.EmbeddingBag)):
        raise NotApplicable(
            f"{type(root).__name__} has no first layer to standardize the inputs of: that would be a Linear, a "
            "convolution or a recurrent network as a part. Write inputs = (inputs - mean) / std where you load them"
        )
    return first


def _feature_dim(event: Event) -> int:
    layer = event.module
    return -1 - len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else -1
