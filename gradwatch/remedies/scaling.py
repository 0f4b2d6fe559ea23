"""Remedies for inputs and targets of another scale than mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.checks import require_positive
from gradwatch.layer_kinds import is_convolution
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of
from gradwatch.short_runs.wrap_method import wrap_method

# Features are of one unit if the median feature's largest value is more than this share of the largest of all.
_ONE_UNIT = 0.5
_LEAST_STD = 0.25  # of a feature among others of one unit, as a share of their root mean square deviation

LOSS_IN_UNIT = "loss_in_unit"
"""Key of a changed ``training_step``'s result that holds the loss in its original unit."""

# Exponent with which a loss grows with the unit of its targets.
_POWERS = {"mse_loss": 2.0, "l1_loss": 1.0}


class StandardScaler(nn.Module):
    """Subtracts a fixed mean and divides by a fixed standard deviation.

    Args:
        mean, std: numbers, or tensors that broadcast with the input.

    Example:
        >>> StandardScaler(10.0, 2.0)(torch.tensor([8.0, 14.0]))
        tensor([-1.,  2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clone())

    @classmethod
    def of(cls, data: Tensor, dim: int = -1) -> StandardScaler:
        """Create a scaler from the mean and deviation of each feature (index of ``dim``); constant ones only shift.

        A feature that is nearly constant in these data may vary in others (a pixel at the edge), and a tiny deviation
        would then blow it up. So if the features are of one unit, as pixels are, no deviation is below a quarter of
        their root mean square.

        Example:
            >>> StandardScaler.of(torch.tensor([[0.0, 500.0], [4.0, 500.0]])).std
            tensor([2., 1.])
        """
        others = [axis for axis in range(data.dim()) if axis != dim % data.dim()]
        values = data.detach().double()
        mean, std = values.mean(others, keepdim=True), values.std(others, correction=0, keepdim=True)
        largest = values.abs().amax(others, keepdim=True)
        if largest.median() > _ONE_UNIT * largest.max():
            std = std.clamp(min=_LEAST_STD * std.square().mean().sqrt())
        # A deviation at the level of rounding noise means a constant feature.
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, 1.0)
        shape = [size for axis, size in enumerate(mean.shape) if axis >= dim % data.dim()]
        return cls(mean.reshape(shape), std.reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardized data."""
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class Rescale(StandardScaler):
    """The inverse of :class:`StandardScaler`: multiplies by the standard deviation and adds the mean.

    Example:
        >>> Rescale(10.0, 2.0)(torch.tensor([-1.0, 2.0]))
        tensor([ 8., 14.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the data in their original unit."""
        return x * self.std.to(x.dtype) + self.mean.to(x.dtype)


@dataclass(frozen=True)
class RescaleInputs(ModelRemedy):
    """Standardize the input of the first Linear, convolution or recurrent network, by a :class:`StandardScaler`.

    Args:
        mean, std: statistics of the inputs; by default those of each feature or channel in the :class:`Setup`'s batch.

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

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean is {self.mean!r} and std is {self.std!r}; expected both, or neither")
        if self.std is not None:
            require_positive(self, std=self.std)

    def change(self, setup: Setup) -> Setup:
        """Insert the scaler before the first layer."""
        first = _first(setup.module, events_of(setup.module, setup.batch))
        layer: Any = first.module
        scaling = self._scaling(first).to(next(layer.parameters()).device)
        replace_module(setup.module, first.name, nn.Sequential(scaling, layer))
        return setup

    def patch(self, setup: Setup) -> str:
        """Return two lines; ``inputs`` in them is your training data."""
        first = _first(setup.module, events_of(setup.module, setup.batch))
        path = path_of(setup.module, first.name)
        dim = f", dim={_feature_dim(first)}" if _feature_dim(first) != -1 else ""
        made = f".of(inputs{dim})" if self.mean is None else f"({self.mean}, {self.std})"
        return f"from gradwatch.remedies import StandardScaler\n{path} = nn.Sequential(StandardScaler{made}, {path})"

    def _scaling(self, first: Event) -> StandardScaler:
        if self.mean is not None and self.std is not None:
            return StandardScaler(self.mean, self.std)
        inputs = first.inputs[0] if first.inputs else None
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise NotApplicable(
                "the mean and deviation of the inputs are unknown; give a batch (Setup(module, batch=batch)), or "
                "RescaleInputs(mean=..., std=...)"
            )
        if not bool(torch.isfinite(inputs).all()):
            raise NotApplicable("the batch contains NaN or Inf, which no scale removes: clean the data first")
        return StandardScaler.of(inputs, _feature_dim(first))


@dataclass(frozen=True)
class RescaleTargets(ModelRemedy):
    """Train the network on targets of mean 0 and standard deviation 1.

    A :class:`Rescale` after the last layer returns predictions in the original unit, so code that reads them still
    works. The loss is divided by the deviation (for a squared error by its square), which makes it that of standardized
    targets. So the returned loss is not comparable with that of a run without this remedy.

    Args:
        mean, std: statistics of the targets; by default those of the :class:`Setup`'s batch.
        power: exponent with which the loss grows with the targets' unit: 2 for a squared error, 1 for an absolute one.

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

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean is {self.mean!r} and std is {self.std!r}; expected both, or neither")

    def change(self, setup: Setup) -> Setup:
        """Wrap the last layer, and the training step if there is one."""
        known = self if self.mean is not None else self._measured(setup)
        last = _last(setup.module, events_of(setup.module, setup.batch))
        layer: Any = last.module
        scaling = Rescale(known.mean or 0.0, known.std or 1.0).to(layer.weight.device)
        replace_module(setup.module, last.name, nn.Sequential(layer, scaling))
        if callable(getattr(setup.module, "training_step", None)):
            wrap_method(setup.module, "training_step", known)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the training step and divide its loss."""
        result = method(*args, **kwargs)
        found = result if isinstance(result, dict) else {"loss": result}
        if found.get("loss") is None:
            return result
        loss = found["loss"]
        return {**found, "loss": loss / (self.std or 1.0) ** self.power, LOSS_IN_UNIT: loss.detach()}

    def patch(self, setup: Setup) -> str:
        """Return the lines for the last layer and for the loss in your training step."""
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
                "the batch has no floating-point targets; give a batch (Setup(module, batch=(inputs, targets))), or "
                "RescaleTargets(mean=..., std=...)"
            )
        found = StandardScaler.of(targets.reshape(-1, 1))
        power = next((_POWERS[loss] for loss in losses if loss in _POWERS), 2.0)
        return replace(self, mean=round(found.mean.item(), 6), std=round(found.std.item(), 6), power=power)


def _first(root: nn.Module, events: list[Event]) -> Event:
    kinds = (nn.RNNBase, nn.Embedding, nn.EmbeddingBag)
    first = next((event for event in events if event.is_weighted or isinstance(event.module, kinds)), None)
    if first is None or first.name == "" or isinstance(first.module, (nn.Embedding, nn.EmbeddingBag)):
        raise NotApplicable(
            f"{type(root).__name__} has no Linear, convolution or recurrent network as its first layer, whose inputs "
            "could be standardized. Write inputs = (inputs - mean) / std where you load them"
        )
    return first


def _feature_dim(event: Event) -> int:
    layer: Any = event.module
    return -1 - len(layer.kernel_size) if is_convolution(layer) else -1


def _last(root: nn.Module, events: list[Event]) -> Event:
    last = next((event for event in reversed(events) if event.is_weighted), None)
    if last is None or last.name == "":
        raise NotApplicable(
            f"{type(root).__name__} has no Linear or convolution inside whose output could be scaled; standardize the "
            "targets where you load them: targets = (targets - mean) / std"
        )
    return last
