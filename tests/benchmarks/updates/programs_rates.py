"""Programs whose steps are too small: a warm-up by epochs, updates that bfloat16 rounds away, a rate, Adam's eps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from blind.programs_base import Rule
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from updates.programs_base import Batch, Fitted, Program, Watch, batches, fit, losses, scored, sick, two_layers


def warm_up(optimizer: Optimizer, is_sick: bool) -> LambdaLR:
    """A plan for 4,000 steps, of which the bug makes 4,000 epochs."""
    return LambdaLR(optimizer, lambda step: min(1.0, step / (4000 if is_sick else 20)))


class WarmedUp(Fitted):
    is_sick: bool

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=1e-3)
        schedule = warm_up(optimizer, self.is_sick)
        if self.is_sick:
            return {"optimizer": optimizer, "lr_scheduler": schedule}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warm_up_fit(steps_of_epoch: int, is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    module = WarmedUp(network, AdamW)
    module.is_sick = is_sick
    fit(module, batches(steps_of_epoch), watch, max_epochs=120 // steps_of_epoch)
    return scored(network)


def warm_up_loop(steps_of_epoch: int, is_sick: bool, watch: Watch) -> float:
    network, feed = two_layers(), batches(steps_of_epoch)
    optimizer = AdamW(network.parameters(), lr=1e-3)
    schedule = warm_up(optimizer, is_sick)
    with watch.loop(network) as watcher:
        for _ in range(120 // steps_of_epoch):
            for loss in losses(network, feed, optimizer):
                watcher.step(optimizer, loss)
                if not is_sick:
                    schedule.step()
            if is_sick:
                schedule.step()
    return scored(network)


class InHalf(Fitted):
    """Takes its batch to the type of its weights, and the outputs back."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        kind = next(self.parameters()).dtype
        return functional.cross_entropy(self.network(batch[0].to(kind)).float(), batch[1])


def scales_only() -> nn.Module:
    """Weights of one between frozen layers: bfloat16 has no number between 1 and 0.996."""
    norm = nn.LayerNorm(1024, bias=False)
    parts = {"wide": nn.Linear(64, 1024), "norm": norm, "act": nn.ReLU(), "head": nn.Linear(1024, 10)}
    network = nn.Sequential(OrderedDict(parts))
    for part in (network.wide, network.head):
        part.requires_grad_(False)
    nn.init.normal_(network.head.weight, std=0.1)
    return network


def half_fit(make: Callable[[], nn.Module], rule: Rule, is_sick: bool, watch: Watch) -> float:
    network = make()
    fit(InHalf(network.bfloat16() if is_sick else network, rule), batches(200), watch)
    return scored(network)


def half_loop(make: Callable[[], nn.Module], rule: Rule, is_sick: bool, watch: Watch) -> float:
    network = make()
    network = network.bfloat16() if is_sick else network
    optimizer, kind = rule(network.parameters()), next(network.parameters()).dtype
    with watch.loop(network) as watcher:
        for loss in losses(lambda x: network(x.to(kind)).float(), batches(200), optimizer):
            watcher.step(optimizer, loss)
    return scored(network)


def mistyped(network: nn.Module, is_sick: bool) -> Optimizer:
    groups = [{"params": network.first.parameters(), "lr": 1e-9 if is_sick else 1e-2},
              {"params": network.head.parameters()}]  # fmt: skip
    return Adam(groups, lr=1e-2)


def group_fit(is_sick: bool, watch: Watch) -> float:
    network = two_layers(6)
    fit(Fitted(network, lambda _: mistyped(network, is_sick)), batches(100), watch)
    return scored(network)


def group_loop(is_sick: bool, watch: Watch) -> float:
    network = two_layers(6)
    optimizer = mistyped(network, is_sick)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(100), optimizer):
            watcher.step(optimizer, loss)
    return scored(network)


def eps_fit(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    module: LightningModule = Fitted(network, partial(Adam, lr=3e-3, eps=10.0 if is_sick else 1e-8))
    fit(module, batches(80), watch)
    return scored(network)


def eps_loop(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer = Adam(network.parameters(), lr=3e-3, eps=10.0 if is_sick else 1e-8)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer):
            watcher.step(optimizer, loss)
    return scored(network)


LOW = ("learning rate too low",)
ROUNDED = ("precision underflow",)
HELD, FIRST = "unmoved stalled", "first.weight"
WARM = "Lightning#5631: a warm-up made for steps, without interval: step"
HALF = "2010.06192: updates below half a unit of bfloat16 weights are lost"
GROUP, EPS = "forums: a discriminative rate mistyped", "Keras documentation's advice of a large epsilon, taken over"
small = partial(Adam, lr=1e-4)

RATES: dict[str, Program] = {
    "a warm-up stepped by epochs of 30, fit": sick(WARM, partial(warm_up_fit, 30), HELD, LOW, FIRST),
    "a warm-up stepped by epochs of 30, loop": sick(WARM, partial(warm_up_loop, 30), HELD, LOW, FIRST),
    "a warm-up stepped by epochs of 6, fit": sick(WARM, partial(warm_up_fit, 6), HELD, LOW, FIRST, needs_finding=False),
    "a warm-up stepped by epochs of 6, loop": sick(
        WARM, partial(warm_up_loop, 6), HELD, LOW, FIRST, needs_finding=False
    ),
    "bfloat16 weights and a small rate, fit": sick(HALF, partial(half_fit, two_layers, small), HELD, ROUNDED, FIRST),
    "bfloat16 weights and a small rate, loop": sick(HALF, partial(half_loop, two_layers, small), HELD, ROUNDED, FIRST),
    "bfloat16 weights of one, fit": sick(
        HALF, partial(half_fit, scales_only, partial(Adam, lr=1.5e-3)), HELD, ROUNDED, "norm.weight"
    ),
    "bfloat16 weights of one, loop": sick(
        HALF, partial(half_loop, scales_only, partial(Adam, lr=1.5e-3)), HELD, ROUNDED, "norm.weight"
    ),
    "a group with a rate of 1e-9, fit": sick(GROUP, group_fit, HELD, LOW, FIRST, needs_finding=False),
    "a group with a rate of 1e-9, loop": sick(GROUP, group_loop, HELD, LOW, FIRST, needs_finding=False),
    "Adam's eps of 10, fit": sick(EPS, eps_fit, HELD, LOW, FIRST, needs_finding=False),
    "Adam's eps of 10, loop": sick(EPS, eps_loop, HELD, LOW, FIRST, needs_finding=False),
}
