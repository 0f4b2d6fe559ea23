"""Remedies for gradients that underflow in float16, whose smallest number is 6e-8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gradwatch.checks import require_number
from gradwatch.remedies.remedy import NotApplicable, Remedy, Setup
from gradwatch.short_runs.wrap_method import owner_of, wrap_method

_HALF = {"16": "bf16-mixed", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}
_STATE = "_gradwatch_loss_scale"  # an attribute of the module, so that a copy continues with it


@dataclass(frozen=True)
class UseBfloat16(Remedy):
    """Compute in bfloat16, which has the range of float32, instead of float16; float16 weights become float32.

    bfloat16 has 8 bits of precision, float16 has 11: sums over many small terms get less exact.

    Example:
        >>> from torch import nn
        >>> UseBfloat16().apply(Setup(nn.Linear(1, 1), options={"precision": "16-mixed"})).options
        {'precision': 'bf16-mixed'}

    References: Micikevicius et al., Mixed precision training, 2018, https://arxiv.org/abs/1710.03740; Kalamkar et al.,
    A study of bfloat16 for deep learning training, 2019, https://arxiv.org/abs/1905.12322.
    """

    def change(self, setup: Setup) -> Setup:
        """Set the option, or the dtype of the parameters."""
        precision = str(setup.options.get("precision"))
        has_halves = _has_halves(setup.module)
        if precision not in _HALF and not has_halves:
            raise NotApplicable(
                f"nothing here is in float16 (precision is {setup.options.get('precision')!r}); "
                "if your own code casts to float16, write torch.bfloat16 there"
            )
        if has_halves:
            setup.module.float()
        return setup.with_options(precision=_HALF[precision]) if precision in _HALF else setup

    def patch(self, setup: Setup) -> str:
        """Return the Trainer's argument, or the line of a loop."""
        return 'trainer = Trainer(precision="bf16-mixed")' if setup.trains_itself else "model = model.bfloat16()"


@dataclass(frozen=True)
class ScaleLoss(Remedy):
    """Multiply the loss before the backward pass and divide the gradients after it, in addition to any scale in use.

    If gradients overflow, they are dropped and the scale shrinks; after many finite passes it grows. So it settles near
    the largest scale that float16 allows. The first steps may be lost to overflows.

    Args:
        start: the first scale.
        grow_after: number of consecutive finite backward passes after which the scale doubles.

    Raises:
        ValueError: when one of them is not positive.

    Example:
        >>> ScaleLoss().code(nn.Linear(1, 1)).splitlines()[0]
        'scaler = torch.amp.GradScaler()'

    References: Micikevicius et al., Mixed precision training, 2018, https://arxiv.org/abs/1710.03740, section 3.2.
    """

    start: float = 2.0**16
    grow_after: int = 100
    # Far above the right scale, halving would lose a step for each factor of 2. Growing makes up for a cut too deep.
    shrink: ClassVar[float] = 1 / 64

    def __post_init__(self) -> None:
        require_number(self, above=0, start=self.start, grow_after=self.grow_after)

    def change(self, setup: Setup) -> Setup:
        """Wrap the module's backward."""
        if not setup.trains_itself or not callable(getattr(setup.module, "backward", None)):
            raise NotApplicable(f"the loss must be scaled where your code calls backward. Write:\n{self.patch(setup)}")
        if str(setup.options.get("precision", "")).startswith("16") or _has_halves(setup.module):
            raise NotApplicable("a Trainer in float16 already scales the loss, and float16 weights can't be unscaled")
        wrap_method(setup.module, "backward", self)
        return setup

    def wrap(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the backward pass of the scaled loss, and unscale its gradients."""
        owner = owner_of(method)
        scale, good = owner.__dict__.get(_STATE, (self.start, 0))
        params = [param for param in owner.parameters() if param.requires_grad]
        # Gradients of earlier backward passes (accumulation) are unscaled already: keep them out of this one.
        before = [param.grad for param in params]
        for param in params:
            param.grad = None
        result = method(args[0].float() * scale, *args[1:], **kwargs)
        grads = [param.grad for param in params if param.grad is not None]
        is_good = bool(grads) and all(bool(torch.isfinite(grad).all()) for grad in grads)
        for param, old in zip(params, before, strict=True):
            new = param.grad.div_(scale) if is_good and param.grad is not None else None
            param.grad = old if new is None else new if old is None else old + new
        good = good + 1 if is_good else 0
        factor = self.shrink if not is_good else 2.0 if good % self.grow_after == 0 else 1.0
        owner.__dict__[_STATE] = scale * factor, good
        return result

    def patch(self, setup: Setup) -> str:
        """Return the Trainer's argument, or the lines of a loop."""
        if setup.trains_itself:
            return 'trainer = Trainer(precision="16-mixed")  # it scales the loss: leave the casts and the scale to it'
        return "scaler = torch.amp.GradScaler()\nscaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()"


def _has_halves(module: nn.Module) -> bool:
    return any(param.dtype == torch.float16 for param in module.parameters())
