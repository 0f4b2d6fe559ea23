"""bfloat16 in the place of float16, whose smallest numbers are too large for small gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from gradwatch.remedies.remedy import Remedy
from gradwatch.remedies.setup import NotApplicable, Setup

_HALF = {"16": "bf16-mixed", "16-mixed": "bf16-mixed", "16-true": "bf16-true"}


@dataclass(frozen=True)
class UseBfloat16(Remedy):
    """Compute in bfloat16, which has the range of float32, and not in float16; a half module becomes float32.

    Example:
        >>> from torch import nn
        >>> UseBfloat16().apply(Setup(nn.Linear(1, 1), options={"precision": "16-mixed"})).options
        {'precision': 'bf16-mixed'}

    References: Micikevicius et al., Mixed precision training, 2018, https://arxiv.org/abs/1710.03740; Kalamkar et al.,
    A study of bfloat16 for deep learning training, 2019, https://arxiv.org/abs/1905.12322.
    """

    fits: ClassVar[Mapping[str, float]] = {"precision underflow": 1.0, "unguarded operation": 0.2}

    def change(self, setup: Setup) -> Setup:
        """Set the option, or the parameters' type."""
        precision = str(setup.options.get("precision"))
        halves = [param for param in setup.module.parameters() if param.dtype == torch.float16]
        if precision not in _HALF and not halves:
            raise NotApplicable(
                f"nothing here is in float16 (precision is {setup.options.get('precision')!r}); "
                "where your own code casts to it, write torch.bfloat16"
            )
        if halves:
            setup.module.float()
        return setup.with_options(precision=_HALF[precision]) if precision in _HALF else setup

    def patch(self, setup: Setup) -> str:
        """The Trainer's argument, or the line of a loop."""
        if setup.trains_itself:
            return 'trainer = Trainer(precision="bf16-mixed")'
        return "model = model.bfloat16()"
