"""Remedies for an activation between the last layer and the loss that blocks the gradient, or bounds the output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradwatch.layer_kinds import activation_name, is_activation, is_rectifier, is_softmax
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, NothingToChange, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import CALLING, FUNCTIONS, LOSSES, Event, events_of, quoted, users_line
from gradwatch.short_runs.wrap_method import wrap_method


@dataclass(frozen=True)
class FixHead(ModelRemedy):
    """Remove the softmax after the last layer if the loss is a cross-entropy, which contains one.

    With two in a row, logits differ by at most 1: the gradient is weak, and the loss can't get near 0. A softmax over
    one unit becomes a Sigmoid if the loss takes probabilities. A ReLU between the last layer and the loss is removed
    too, as it blocks the gradient of every negative output; so is a LayerNorm over one unit, which gives its bias
    whatever it gets.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1))
        >>> FixHead().apply(network)[1]
        Identity()
        >>> print(FixHead().code(network))
        model[1] = nn.Identity()
    """

    def change(self, setup: Setup) -> Setup:
        """Replace the activation, or the normalizations of one unit."""
        for name, new in self._replacements(setup):
            replace_module(setup.module, name, new)
        return setup

    def patch(self, setup: Setup) -> str:
        """Return a line for each."""
        made = ((path_of(setup.module, name), type(new).__name__) for name, new in self._replacements(setup))
        return "\n".join(f"{path} = nn.{kind}()" for path, kind in made)

    def _replacements(self, setup: Setup) -> list[tuple[str, nn.Module]]:
        norms = ((name, part) for name, part in setup.module.named_modules() if isinstance(part, nn.LayerNorm))
        over_one = [(name, nn.Identity()) for name, part in norms if name and math.prod(part.normalized_shape) == 1]
        if over_one:
            return [*over_one]
        events = events_of(setup.module, setup.batch)
        return [(_blocking(setup.module, events), _new_end(events))]


def _blocking(root: nn.Module, events: list[Event]) -> str:
    """Return the name of the softmax or ReLU that blocks the gradient."""
    last = max((index for index, event in enumerate(events) if event.is_weighted), default=len(events))
    ends = [event for event in events[last + 1 :] if is_softmax(event.kind) or is_rectifier(event.kind)]
    found = [event for event in ends if _enters_loss(event, events)]
    if not found:
        raise NotApplicable(
            f"{type(root).__name__} has no softmax or ReLU between its last layer and its loss; other reasons for a "
            "head without a gradient are zero weights, or a detach() after it"
        )
    if not found[0].name:
        raise NotApplicable(
            f"forward calls {found[0].kind} as a function after the last layer; return the output of that layer"
        )
    return found[0].name


def _enters_loss(softmax: Event, events: list[Event]) -> bool:
    """Return True if its own output enters a loss that does not expect it, or if no pass was recorded."""
    losses = [event for event in events if event.kind in ("cross_entropy", "binary_cross_entropy", "mse_loss")]
    if not isinstance(softmax.output, Tensor) or not losses:
        return not any(event.kind == "nll_loss" for event in events)
    # Compare storage, not objects: the loss may be given a view, and an output used elsewhere must not count.
    wanted = softmax.output.data_ptr()
    direct = [e for e in losses if any(isinstance(part, Tensor) and part.data_ptr() == wanted for part in e.inputs)]
    is_relu = is_rectifier(softmax.kind)
    return any(is_relu or event.kind == "cross_entropy" or softmax.output.shape[-1] == 1 for event in direct)


def _new_end(events: list[Event]) -> nn.Module:
    if any(_is_beyond(event, "Sigmoid") for event in events if event.kind in DISTANCES):
        return nn.Identity()
    last = next((event.module for event in reversed(events) if event.is_weighted), None)
    softmaxes = any(is_softmax(event.kind) for event in events)
    if not isinstance(last, nn.Linear) or last.out_features > 1 or not softmaxes:
        return nn.Identity()
    if any(event.kind in ("binary_cross_entropy", "mse_loss") for event in events):
        return nn.Sigmoid()
    raise NotApplicable(
        "the softmax is over one unit, so its output is always 1 and its gradient 0. Give the head two units, "
        "or return the logit and write nn.functional.binary_cross_entropy_with_logits(logit, target.float())"
    )


DISTANCES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_INF = float("inf")
_RANGES = {
    "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Hardsigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0), "Hardtanh": (-1.0, 1.0), "ReLU": (0.0, _INF), "ReLU6": (0.0, 6.0),
    "Softplus": (0.0, _INF),
}  # fmt: skip
_FEW = 0.1  # share of the targets out of reach that may be noise


@dataclass(frozen=True)
class RemoveLastActivation(ModelRemedy):
    """Remove the activation after the last layer where it cannot give the targets of a regression.

    A Sigmoid's output lies between 0 and 1, a ReLU's above 0: the squared error of other targets can't come near 0.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
        >>> RemoveLastActivation().apply(network)[1]
        Identity()
        >>> print(RemoveLastActivation().code(network))
        model[1] = nn.Identity()
    """

    def change(self, setup: Setup) -> Setup:
        """Replace the activation by the identity, where it is a function in the forward pass too."""
        found = self._activation(setup)
        if found.name:
            replace_module(setup.module, found.name, nn.Identity())
            return setup
        if setup.trains_itself:
            wrap_method(setup.module, "training_step", _Bare(found.place))
        for part in setup.module.modules():
            if not type(part).__module__.startswith("torch."):
                wrap_method(part, "forward", _Bare(found.place))
        return setup

    def patch(self, setup: Setup) -> str:
        """Return one line: the new one, or the user's that calls the activation."""
        found = self._activation(setup)
        if found.name:
            return f"{path_of(setup.module, found.name)} = nn.Identity()"
        return f"# remove the {found.kind} here:\n{quoted([found.place])}"

    def _activation(self, setup: Setup) -> Event:
        events = events_of(setup.module, setup.batch)
        found = _last_activation(events)
        losses = [event for event in events if event.kind in DISTANCES]
        if found is None or (losses and not any(_is_beyond(loss, _known(found.kind)) for loss in losses)):
            raise NothingToChange(f"{type(setup.module).__name__} ends in no activation that its targets go beyond")
        if not losses and setup.batch is not None:
            raise NothingToChange("the loss measures no distance from a target")
        if not found.name and (not found.place or sum(event.place == found.place for event in events) > 1):
            raise NotApplicable(
                f"forward calls {found.kind} as a function after the last layer; return the output of that layer"
            )
        return found


@dataclass(frozen=True)
class _Bare:
    """Runs a method without the activation that is called as a function at a place."""

    place: str

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _WithoutActivation(self.place):
            return method(*args, **kwargs)


class _WithoutActivation(TorchFunctionMode):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in FUNCTIONS and args and users_line(*CALLING) == self.place:
            return args[0]
        return func(*args, **(kwargs or {}))


def _last_activation(events: list[Event]) -> Event | None:
    """Return the activation after the last layer with weights; None where there is none."""
    last = max((index for index, event in enumerate(events) if event.is_weighted), default=len(events))
    ends = [e for e in events[last + 1 :] if e.kind not in LOSSES and (is_activation(e.kind) or is_softmax(e.kind))]
    return ends[-1] if ends else None


def _known(kind: str) -> str:
    return activation_name(kind) or kind


def _is_beyond(loss: Event, kind: str) -> bool:
    """Return True if a loss gets targets that an activation cannot give."""
    low, high = _RANGES.get(kind, (-_INF, _INF))
    target = loss.inputs[1] if len(loss.inputs) > 1 else None
    return isinstance(target, Tensor) and bool(((target < low) | (target > high)).float().mean() > _FEW)
