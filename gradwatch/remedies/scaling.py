"""Layers that bring data to mean 0 and deviation 1, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradwatch.layer_kinds import is_convolution
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of
from gradwatch.short_runs.wrap_method import wrap_method

_ALIKE, _LEAST = 0.5, 0.25


class Standardize(nn.Module):
    """Subtracts a mean and divides by a deviation, both fixed.

    Args:
        mean, std: numbers, or tensors that broadcast with the input.

    Example:
        >>> Standardize(10.0, 2.0)(torch.tensor([8.0, 14.0]))
        tensor([-1.,  2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clone())

    @classmethod
    def of(cls, data: Tensor, dim: int = -1) -> Standardize:
        """By the statistics of data, each feature (entry along ``dim``) with its own; a constant one is only shifted.

        A feature that hardly varies in these data, or not at all, may do so in others (a pixel at the edge). Where all
        are of one unit, so that most reach as far as the largest does, no deviation counts as less than a quarter of
        the usual one.

        Example:
            >>> Standardize.of(torch.tensor([[0.0, 500.0], [4.0, 500.0]])).std
            tensor([2., 1.])
        """
        others = [axis for axis in range(data.dim()) if axis != dim % data.dim()]
        values = data.detach().double()
        mean, std = values.mean(others, keepdim=True), values.std(others, correction=0, keepdim=True)
        largest = values.abs().amax(others, keepdim=True)
        if largest.median() > _ALIKE * largest.max():
            std = std.clamp(min=_LEAST * std.square().mean().sqrt())
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, 1.0)
        shape = [size for axis, size in enumerate(mean.shape) if axis >= dim % data.dim()]
        return cls(mean.reshape(shape), std.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The standardized data."""
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class Rescale(Standardize):
    """The way back: multiplies by a deviation and adds a mean.

    Example:
        >>> Rescale(10.0, 2.0)(torch.tensor([-1.0, 2.0]))
        tensor([ 8., 14.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The data in their own unit."""
        return x * self.std.to(x.dtype) + self.mean.to(x.dtype)


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
    layer: Any = event.module
    return -1 - len(layer.kernel_size) if is_convolution(layer) else -1


LOSS_IN_UNIT = "loss_in_unit"
"""Where a changed ``training_step`` puts the loss in the unit that it had before."""

_POWERS = {"mse_loss": 2.0, "l1_loss": 1.0}


@dataclass(frozen=True)
class RescaleTargets(ModelRemedy):
    """Let the network predict targets of mean 0 and deviation 1.

    Its last layer's output is scaled back, and the loss is divided by the deviation (its square, of a squared error):
    that is the loss on standardized targets, while whatever reads the predictions finds them in their own unit.

    Args:
        mean, std: of the targets; measured on the :class:`Setup`'s batch where they are not given.
        power: by which the loss grows with the unit: 2 of a squared error, 1 of an absolute one.

    Raises:
        ValueError: when only one of the two is given.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1))
        >>> RescaleTargets(mean=500.0, std=100.0).apply(network)[0][1]
        Rescale()
    """

    mean: float | None = None
    std: float | None = None
    power: float = 2.0
    fits: ClassVar[Mapping[str, float]] = {"unscaled target": 1.0}

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean is {self.mean!r} and std is {self.std!r}; expected both, or neither")

    def change(self, setup: Setup) -> Setup:
        """Wrap the last layer, and the training step where there is one."""
        known = self if self.mean is not None else self._measured(setup)
        last = _last(setup.module, events_of(setup.module, setup.batch))
        layer: Any = last.module
        scaling = Rescale(known.mean or 0.0, known.std or 1.0).to(layer.weight.device)
        replace_module(setup.module, last.name, nn.Sequential(layer, scaling))
        if callable(getattr(setup.module, "training_step", None)):
            wrap_method(setup.module, "training_step", known)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The training step with its loss in units of the targets' deviation."""
        result = method(*args, **kwargs)
        found = result if isinstance(result, dict) else {"loss": result}
        if found.get("loss") is None:
            return result
        loss = found["loss"]
        return {**found, "loss": loss / (self.std or 1.0) ** self.power, LOSS_IN_UNIT: loss.detach()}

    def patch(self, setup: Setup) -> str:
        """The last layer; the loss is divided in your own step."""
        known = self if self.mean is not None or setup.batch is None else self._measured(setup)
        path = path_of(setup.module, _last(setup.module, events_of(setup.module, setup.batch)).name)
        mean, std = ("targets.mean()", "targets.std()") if known.mean is None else (known.mean, known.std)
        return (
            "from gradwatch.remedies import Rescale\n"
            f"{path} = nn.Sequential({path}, Rescale({mean}, {std}))\n"
            f"loss = loss / {std} ** {known.power:g}  # in training_step"
        )

    def _measured(self, setup: Setup) -> RescaleTargets:
        batch, events = setup.batch, events_of(setup.module, setup.batch)
        targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        losses = [event.kind for event in events if event.module is None and event.kind.endswith(("loss", "entropy"))]
        if not isinstance(targets, Tensor) or not targets.is_floating_point() or "cross_entropy" in losses:
            raise NotApplicable(
                "no targets that are numbers were found; give a batch (Setup(module, batch=(inputs, targets))), or "
                "RescaleTargets(mean=..., std=...)"
            )
        found = Standardize.of(targets.reshape(-1, 1))
        power = next((_POWERS[loss] for loss in losses if loss in _POWERS), 2.0)
        return replace(self, mean=round(found.mean.item(), 6), std=round(found.std.item(), 6), power=power)


def _last(root: nn.Module, events: list[Event]) -> Event:
    last = next((event for event in reversed(events) if event.is_weighted), None)
    if last is None or last.name == "":
        raise NotApplicable(
            f"{type(root).__name__} has no last Linear or convolution as a part; standardize the targets where you "
            "load them: targets = (targets - mean) / std"
        )
    return last
