"""A softmax or ReLU that stands between the last layer and the loss, and stops the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gradwatch.layer_kinds import is_rectifier, is_softmax
from gradwatch.remedies.remedy import ModelRemedy, NotApplicable, Setup
from gradwatch.remedies.surgery import path_of, replace_module
from gradwatch.remedies.tracing import Event, events_of

_ONE_UNIT = (
    "the softmax stands over one unit, so that its output is always 1 and no gradient passes. Give the head two units, "
    "or return the logit and write nn.functional.binary_cross_entropy_with_logits(logit, target.float())"
)


@dataclass(frozen=True)
class FixHead(ModelRemedy):
    """Remove the softmax behind the last layer where the loss is a cross-entropy, which takes one itself.

    Two in a row leave differences between outputs of at most 1: the gradient is weak, and the loss can't come near 0.
    A softmax over one unit becomes a Sigmoid where the loss takes probabilities. A ReLU between the last layer and the
    loss, which stops the gradient of every output below 0, is removed too.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1))
        >>> FixHead().apply(network)[1]
        Identity()
        >>> print(FixHead().code(network))
        model[1] = nn.Identity()
    """

    fits: ClassVar[Mapping[str, float]] = {"zero-gradient head": 1.0}

    def change(self, setup: Setup) -> Setup:
        """Exchange it."""
        events = events_of(setup.module, setup.batch)
        name = _softmax(setup.module, events)
        replace_module(setup.module, name, _instead(setup.module, events))
        return setup

    def patch(self, setup: Setup) -> str:
        """One line."""
        events = events_of(setup.module, setup.batch)
        made = type(_instead(setup.module, events)).__name__
        return f"{path_of(setup.module, _softmax(setup.module, events))} = nn.{made}()"


def _softmax(root: nn.Module, events: list[Event]) -> str:
    last = max((index for index, event in enumerate(events) if event.is_weighted), default=len(events))
    found = [event for event in events[last + 1 :] if _can_stop(event.kind) and _enters_loss(event, events)]
    if not found:
        raise NotApplicable(
            f"{type(root).__name__} has no softmax or ReLU between its last layer and its loss; a head that gets "
            "no gradient for another reason has zero weights, or a detach() behind it"
        )
    if not found[0].name:
        raise NotApplicable(
            f"forward calls {found[0].kind} as a function behind the last layer; return what that layer gives"
        )
    return found[0].name


def _can_stop(kind: str) -> bool:
    return is_softmax(kind) or is_rectifier(kind)


def _enters_loss(softmax: Event, events: list[Event]) -> bool:
    """Whether its very output goes into a loss that does not expect it; where nothing was run, it may."""
    losses = [event for event in events if event.kind in ("cross_entropy", "binary_cross_entropy", "mse_loss")]
    if not isinstance(softmax.output, Tensor) or not losses:
        return not any(event.kind == "nll_loss" for event in events)
    wanted = softmax.output.data_ptr()
    direct = [e for e in losses if any(isinstance(part, Tensor) and part.data_ptr() == wanted for part in e.inputs)]
    is_relu = is_rectifier(softmax.kind)
    return any(is_relu or event.kind == "cross_entropy" or softmax.output.shape[-1] == 1 for event in direct)


def _instead(root: nn.Module, events: list[Event]) -> nn.Module:
    last = next((event.module for event in reversed(events) if event.is_weighted), None)
    softmaxes = any(is_softmax(event.kind) for event in events)
    if not isinstance(last, nn.Linear) or last.out_features > 1 or not softmaxes:
        return nn.Identity()
    if any(event.kind in ("binary_cross_entropy", "mse_loss") for event in events):
        return nn.Sigmoid()
    raise NotApplicable(_ONE_UNIT)
