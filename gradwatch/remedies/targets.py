"""Targets at mean 0 and deviation 1, while predictions and metrics stay in their own unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from gradwatch.remedies.method import wrap_method
from gradwatch.remedies.remedy import ModelRemedy
from gradwatch.remedies.scaling import Rescale, Standardize
from gradwatch.remedies.setup import NotApplicable, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of

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
