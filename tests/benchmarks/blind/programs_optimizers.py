"""Optimizers with a schedule, a clip or a bug."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from blind.programs_base import Rule
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer


def scheduled(rule: Rule, schedule: Callable[[Optimizer], Any]) -> Rule:
    """An optimizer that advances its schedule after each step."""

    def made(params: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = rule(params)
        plan = schedule(optimizer)
        optimizer.register_step_post_hook(lambda *_: plan.step())
        return optimizer

    return made


def clipped(rule: Rule, norm: float) -> Rule:
    """An optimizer that clips the gradients before each step."""

    def made(params: Iterable[nn.Parameter]) -> Optimizer:
        held = list(params)
        optimizer = rule(held)
        optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(held, norm) and None)
        return optimizer

    return made


def bounded(rule: Rule, bound: float) -> Rule:
    """An optimizer that cuts the weights to a small range after each step, as in a Wasserstein critic."""

    def made(params: Iterable[nn.Parameter]) -> Optimizer:
        held = list(params)
        optimizer = rule(held)

        def cut(*_: Any) -> None:
            for param in held:
                param.data.clamp_(-bound, bound)

        optimizer.register_step_post_hook(cut)
        return optimizer

    return made


def hoarding(params: Iterable[nn.Parameter]) -> Optimizer:
    """SGD of gradients that are never zeroed, whether or not the loop around it zeroes them."""
    held = list(params)
    for param in held:
        param.register_post_accumulate_grad_hook(_Sum())
    return SGD(held, lr=0.1)


class _Sum:
    before: Tensor | float = 0.0

    def __call__(self, param: Tensor) -> None:
        assert param.grad is not None
        param.grad += self.before
        self.before = param.grad.clone()


def slow_body(params: Iterable[nn.Parameter]) -> Optimizer:
    *body, weight, bias = params
    return Adam([{"params": body, "lr": 1e-9}, {"params": [weight, bias], "lr": 1e-2}])
