"""Programs whose optimizer's step does nothing at all."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from updates.programs_base import Batch, Fitted, Program, Watch, batches, fit, losses, scored, sick, two_layers

adam = partial(Adam, lr=3e-3)


class Counted(SGD):
    """SGD that counts its steps, in an override that forgets to step."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return None if closure is None else closure()


class Delayed:
    """A wrapper that is to step with each second call; its count never grows. It is no torch Optimizer."""

    def __init__(self, optimizer: Optimizer, is_sick: bool) -> None:
        self.inner, self.calls, self.is_sick = optimizer, 0, is_sick

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def state(self) -> Any:
        return self.inner.state

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        calls = self.calls + 1
        if calls % 2 == 0 or not self.is_sick:
            self.inner.step()


def override_fit(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    fit(Fitted(network, partial(Counted if is_sick else SGD, lr=0.2)), batches(80), watch)
    return scored(network)


def override_loop(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer = (Counted if is_sick else SGD)(network.parameters(), lr=0.2)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer):
            watcher.step(optimizer, loss)
    return scored(network)


def wrapper_loop(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer: Any = Delayed(adam(network.parameters()), is_sick)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer):
            watcher.step(optimizer, loss)
    return scored(network)


class OnlyClosure(Fitted):
    """Overrides Lightning's optimizer_step, runs the closure, and leaves out the step."""

    is_sick: bool

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.is_sick:
            optimizer_closure()
        else:
            optimizer.step(closure=optimizer_closure)


def only_closure_fit(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    module = OnlyClosure(network, adam)
    module.is_sick = is_sick
    fit(module, batches(80), watch)
    return scored(network)


def rounded_to_zero(optimizer: Optimizer, is_sick: bool) -> LambdaLR:
    """A warm-up whose share of 10 steps is divided in whole numbers, against a plan that was meant for 100000."""
    return LambdaLR(optimizer, lambda step: step // 100_000 if is_sick else min(1.0, (step + 1) / 10))


class Scheduled(Fitted):
    is_sick: bool

    def configure_optimizers(self) -> Any:
        optimizer = adam(self.parameters())
        return [optimizer], [{"scheduler": rounded_to_zero(optimizer, self.is_sick), "interval": "step"}]


def schedule_fit(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    module = Scheduled(network, adam)
    module.is_sick = is_sick
    fit(module, batches(80), watch)
    return scored(network)


def schedule_loop(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer = adam(network.parameters())
    schedule = rounded_to_zero(optimizer, is_sick)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer):
            watcher.step(optimizer, loss)
            schedule.step()
    return scored(network)


def penalty(network: nn.Module, is_sick: bool) -> Tensor:
    """The root of the sum of the biases: its slope at the start, zero, is infinite without a guard."""
    squares = network.head.bias.square().sum()
    return 1e-3 * (squares if is_sick else squares + 1e-6).sqrt()


def from_zero() -> nn.Module:
    network = two_layers()
    nn.init.zeros_(network.head.bias)
    return network


class Agreed(torch.amp.GradScaler):
    """A scaler whose processes agree on skipping; the buffer that they add up starts at one."""

    is_sick = True

    def _maybe_opt_step(self, optimizer: Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_sick:
            for found in optimizer_state["found_inf_per_device"].values():
                found.fill_(1.0)
        return super()._maybe_opt_step(optimizer, optimizer_state, *args, **kwargs)


def scaler_of(kind: type[torch.amp.GradScaler], is_sick: bool) -> torch.amp.GradScaler:
    scaler = kind("cpu", init_scale=2.0**10)
    scaler.is_sick = is_sick  # type: ignore[attr-defined]
    return scaler


class Penalized(Fitted):
    """Cross-entropy and a penalty, or cross-entropy alone."""

    with_penalty: bool
    is_sick: bool

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss + penalty(self.network, self.is_sick) if self.with_penalty else loss


def skipped_fit(kind: type[torch.amp.GradScaler], is_sick: bool, watch: Watch) -> float:
    network = from_zero()
    module = Penalized(network, adam)
    module.with_penalty, module.is_sick = kind is not Agreed, is_sick
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler_of(kind, is_sick))
    fit(module, batches(80), watch, plugins=[precision])
    return scored(network)


def skipped_loop(kind: type[torch.amp.GradScaler], is_sick: bool, watch: Watch) -> float:
    network = from_zero()
    optimizer, scaler = adam(network.parameters()), scaler_of(kind, is_sick)
    with watch.loop(network) as watcher:
        for loss in scaled_losses(network, batches(80), optimizer, scaler, is_sick and kind is not Agreed):
            watcher.step(optimizer, loss, scaler=scaler)
            scaler.update()
    return scored(network)


def scaled_losses(
    network: nn.Module, feed: Iterable[Batch], optimizer: Optimizer, scaler: torch.amp.GradScaler, steep: bool
) -> Iterable[Tensor]:
    for x, y in feed:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            output = network(x)
        loss = functional.cross_entropy(output.float(), y) + penalty(network, steep)
        scaler.scale(loss).backward()
        yield loss


def reset_loop(is_sick: bool, watch: Watch) -> float:
    """The scale starts anew at 2^24 after each step, so half precision overflows in each."""
    network = two_layers()
    optimizer, scaler = adam(network.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**24)
    with watch.loop(network) as watcher:
        for loss in scaled_losses(network, batches(80), optimizer, scaler, False):
            watcher.step(optimizer, loss, scaler=scaler)
            scaler.update(2.0**24 if is_sick else None)
    return scored(network)


NONE, SKIPS = ("step without effect",), ("step without effect", "precision underflow", "unguarded operation")
ZERO = ("learning rate too low", "step without effect")
FIRST, OVERRIDE = "first.weight", "forums: step() overridden without super().step()"
INF, HELD, UNMOVED = "forums: a gradient that is always NaN, and a scaler that hides it", "unmoved nonfinite", "unmoved"
ROOT, REDUCED = "forums: found_inf added up over processes by hand", torch.amp.GradScaler

STEPS: dict[str, Program] = {
    "an override of step() does nothing, fit": sick(OVERRIDE, override_fit, UNMOVED, NONE, FIRST),
    "an override of step() does nothing, loop": sick(OVERRIDE, override_loop, UNMOVED, NONE, FIRST),
    "a wrapper's step() does nothing, loop": sick(
        "forums: a wrapper that delays steps", wrapper_loop, UNMOVED, NONE, FIRST
    ),
    "optimizer_step only runs the closure, fit": sick(
        "forums: LightningModule.optimizer_step overridden", only_closure_fit, UNMOVED, NONE, FIRST
    ),
    "a schedule holds the rate at zero, fit": sick("forums: step // warmup", schedule_fit, UNMOVED, ZERO, FIRST),
    "a schedule holds the rate at zero, loop": sick("forums: step // warmup", schedule_loop, UNMOVED, ZERO, FIRST),
    "a scaler skips each step: an infinite slope, fit": sick(
        INF, partial(skipped_fit, REDUCED), HELD, SKIPS, "head.bias"
    ),
    "a scaler skips each step: an infinite slope, loop": sick(
        INF, partial(skipped_loop, REDUCED), HELD, SKIPS, "head.bias"
    ),
    "a scaler skips each step: found_inf is set, fit": sick(ROOT, partial(skipped_fit, Agreed), UNMOVED, SKIPS, FIRST),
    "a scaler skips each step: found_inf is set, loop": sick(
        ROOT, partial(skipped_loop, Agreed), UNMOVED, SKIPS, FIRST
    ),
    "a scaler skips each step: its scale is set anew, loop": sick(
        "forums: scaler.update(init_scale)", reset_loop, HELD, SKIPS, FIRST
    ),
}  # fmt: skip
