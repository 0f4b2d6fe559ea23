"""Healthy programs in which something else than the optimizer touches the weights, the gradients or the precision."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam
from updates.programs_base import Batch, Fitted, Program, Watch, batches, fit, healthy, losses, scored, two_layers

import gradwatch
from gradwatch.transforms import SkipNonFinite

STEPS = 60
adam = partial(Adam, lr=3e-3)


class Student(nn.Module):
    """A network and its teacher, which follows it slowly (1703.01780)."""

    def __init__(self) -> None:
        super().__init__()
        self.student = two_layers()
        self.teacher = deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        agreement = functional.mse_loss(self.student(x), self.teacher(x))
        return functional.cross_entropy(self.student(x), y) + 0.1 * agreement

    @torch.no_grad()
    def follow(self, share: float) -> None:
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, share)


class Taught(Fitted):
    every: int

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        network: Any = self.network
        return network.loss(*batch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        network: Any = self.network
        if (batch_idx + 1) % self.every == 0:
            network.follow(0.05 if self.every == 1 else 1.0)


def taught_fit(every: int, watch: Watch) -> float:
    network = Student()
    module = Taught(network, adam)
    module.every = every
    fit(module, batches(STEPS), watch)
    return scored(network)


def taught_loop(every: int, watch: Watch) -> float:
    network = Student()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for at, (x, y) in enumerate(batches(STEPS)):
            optimizer.zero_grad()
            loss = network.loss(x, y)
            loss.backward()
            watcher.step(optimizer, loss)
            if (at + 1) % every == 0:
                network.follow(0.05 if every == 1 else 1.0)
    return scored(network)


def swapped_loop(watch: Watch) -> float:
    """The averaged weights are lent to the network for an evaluation after each tenth step."""
    network = two_layers()
    average, optimizer = deepcopy(network), adam(network.parameters())
    with watch.loop(network) as watcher:
        for at, loss in enumerate(losses(network, batches(STEPS), optimizer)):
            watcher.step(optimizer, loss)
            with torch.no_grad():
                for mean, param in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(param, 0.1)
            if at % 10 == 9:
                own = deepcopy(network.state_dict())
                network.load_state_dict(average.state_dict())
                scored(network)
                network.train()
                network.load_state_dict(own)
    return scored(network)


def rolled_back_loop(watch: Watch) -> float:
    """The weights of step 30 come back at step 40, once."""
    network = two_layers()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for at, loss in enumerate(losses(network, batches(STEPS), optimizer)):
            watcher.step(optimizer, loss)
            if at == 30:
                kept = deepcopy(network.state_dict())
            if at == 40:
                network.load_state_dict(kept)
    return scored(network)


def with_callback(make: Any, epochs: int, watch: Watch) -> float:
    network = two_layers()
    fit(Fitted(network, adam), batches(STEPS // epochs), watch, max_epochs=epochs, callbacks=[make()])
    return scored(network)


def every_step() -> Callback:
    return WeightAveraging(avg_fn=lambda mean, param, _: mean.lerp(param, 0.1))


def skips_nonfinite() -> Callback:
    return gradwatch.GradientTransform([SkipNonFinite()])


def with_options(options: dict[str, Any], watch: Watch) -> float:
    network = two_layers()
    fit(Fitted(network, adam), batches(STEPS), watch, **options)
    return scored(network)


def scaler() -> torch.amp.GradScaler:
    """A scaler that skips a few steps until half precision no longer overflows."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**24)


def scaled_fit(watch: Watch) -> float:
    return with_options({"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler())]}, watch)


def scaled_loop(watch: Watch) -> float:
    network = two_layers()
    optimizer, scale = adam(network.parameters()), scaler()
    with watch.loop(network) as watcher:
        for x, y in batches(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = functional.cross_entropy(network(x).float(), y)
            scale.scale(loss).backward()
            watcher.step(optimizer, loss, scaler=scale)
            scale.update()
    return scored(network)


def half_loop(watch: Watch) -> float:
    network = two_layers()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for x, y in batches(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(network(x).float(), y)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


def clipped_loop(bound: float, watch: Watch) -> float:
    network = two_layers()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(STEPS), optimizer):
            watcher.read(optimizer)
            clip_grad_norm_(network.parameters(), bound)
            watcher.step(optimizer, loss)
    return scored(network)


def clipped_then_stepped_loop(watch: Watch) -> float:
    """The gradients are zeroed after the step, and a part that is frozen is clipped too."""
    network = two_layers()
    network.first.requires_grad_(False)
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for x, y in batches(STEPS):
            loss = functional.cross_entropy(network(x), y)
            loss.backward()
            watcher.read(optimizer)
            clip_grad_norm_(network.parameters(), 1.0)
            watcher.step(optimizer, loss)
            optimizer.zero_grad()
    return scored(network)


class Unfreezes(Fitted):
    """The first layer joins at step 30."""

    held_from_start: bool

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        network: Any = self.network
        if batch_idx == 30:
            network.first.requires_grad_(True)
            if not self.held_from_start:
                self.trainer.optimizers[0].add_param_group({"params": [*network.first.parameters()], "lr": 1e-3})

    def configure_optimizers(self) -> Any:
        network: Any = self.network
        network.first.requires_grad_(False)
        return adam((network if self.held_from_start else network.head).parameters())


def unfrozen_fit(held_from_start: bool, watch: Watch) -> float:
    network = two_layers()
    module = Unfreezes(network, adam)
    module.held_from_start = held_from_start
    fit(module, batches(STEPS), watch)
    return scored(network)


def unfrozen_loop(held_from_start: bool, watch: Watch) -> float:
    network = two_layers()
    network.first.requires_grad_(False)
    optimizer = adam((network if held_from_start else network.head).parameters())
    with watch.loop(network) as watcher:
        for at, (x, y) in enumerate(batches(STEPS)):
            if at == 30:
                network.first.requires_grad_(True)
                if not held_from_start:
                    optimizer.add_param_group({"params": [*network.first.parameters()], "lr": 1e-3})
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


class Skips(Callback):
    """Leaves out a batch in ten, as one without any label."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.leave_out = batch_idx % 10 == 4  # type: ignore[assignment]


class LeavesOut(Fitted):
    leave_out = False

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return None if self.leave_out else super().training_step(batch, batch_idx)


def left_out_fit(watch: Watch) -> float:
    network = two_layers()
    fit(LeavesOut(network, adam), batches(STEPS), watch, callbacks=[Skips()])
    return scored(network)


def satisfied_loop(watch: Watch) -> float:
    """A loss with a margin, which most batches satisfy in the end: their gradient is zero."""
    network = two_layers()
    optimizer = SGD(network.parameters(), lr=0.1)
    with watch.loop(network) as watcher:
        for x, y in batches(2 * STEPS, size=8):
            optimizer.zero_grad()
            loss = functional.multi_margin_loss(network(x), y)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


CALLBACKS: dict[str, Program] = {
    "a teacher that follows, fit": healthy("1703.01780", partial(taught_fit, 1)),
    "a teacher that follows, loop": healthy("1703.01780", partial(taught_loop, 1)),
    "a target that is copied each ten steps, fit": healthy("1312.5602", partial(taught_fit, 10)),
    "a target that is copied each ten steps, loop": healthy("1312.5602", partial(taught_loop, 10)),
    "averaged weights lent for an evaluation, loop": healthy("1703.01780", swapped_loop),
    "weights rolled back once, loop": healthy("forums", rolled_back_loop),
    "WeightAveraging, fit": healthy("Lightning", partial(with_callback, every_step, 1)),
    "EMAWeightAveraging, fit": healthy("Lightning", partial(with_callback, partial(EMAWeightAveraging, decay=0.9), 4)),
    "StochasticWeightAveraging, fit": healthy(
        "1803.05407", partial(with_callback, partial(StochasticWeightAveraging, 5e-3, 2), 5)
    ),
    "SkipNonFinite, fit": healthy("gradwatch", partial(with_callback, skips_nonfinite, 1)),
    "float16 with skipped first steps, fit": healthy("1710.03740", scaled_fit),
    "float16 with skipped first steps, loop": healthy("1710.03740", scaled_loop),
    "bfloat16 mixed, fit": healthy("1905.12322", partial(with_options, {"precision": "bf16-mixed"})),
    "bfloat16 mixed, loop": healthy("1905.12322", half_loop),
    "a clip that is seldom met, fit": healthy("1211.5063", partial(with_options, {"gradient_clip_val": 1.5})),
    "a clip that is never met, fit": healthy("1211.5063", partial(with_options, {"gradient_clip_val": 100.0})),
    "a clip that is met by most, fit": healthy("1211.5063", partial(with_options, {"gradient_clip_val": 0.3})),
    "a clip by value, fit": healthy(
        "1211.5063", partial(with_options, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"})
    ),
    "a clip that is seldom met, loop": healthy("1211.5063", partial(clipped_loop, 1.5)),
    "a clip that is never met, loop": healthy("1211.5063", partial(clipped_loop, 100.0)),
    "a clip that is met by most, loop": healthy("1211.5063", partial(clipped_loop, 0.3)),
    "a clip of a network with a frozen part, loop": healthy("forums", clipped_then_stepped_loop),
    "a part that joins at step 30, fit": healthy("1801.06146", partial(unfrozen_fit, False)),
    "a part that joins at step 30, loop": healthy("1801.06146", partial(unfrozen_loop, False)),
    "a part that thaws at step 30, fit": healthy("1801.06146", partial(unfrozen_fit, True)),
    "a part that thaws at step 30, loop": healthy("1801.06146", partial(unfrozen_loop, True)),
    "batches that are left out, fit": healthy("Lightning's documentation", left_out_fit),
    "a margin that most batches satisfy, loop": healthy("hinge losses", satisfied_loop),
}
