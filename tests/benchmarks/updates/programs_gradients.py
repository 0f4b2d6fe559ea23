"""Programs whose optimizer steps along gradients that are not those of the batch: old ones, none, or unclipped ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from blind.programs_base import Split, cnn
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, Optimizer
from updates.programs_base import (
    Batch,
    ByHand,
    Fitted,
    Program,
    Watch,
    batches,
    fit,
    images,
    losses,
    scored,
    sick,
    two_layers,
)

sgd = partial(SGD, lr=0.2, momentum=0.5)
adam = partial(Adam, lr=3e-3)


class NeverZeroed(Fitted):
    """Turns off Lightning's zero_grad, to save time."""

    def optimizer_zero_grad(self, *_: Any) -> None:
        pass


class NeverZeroedByHand(ByHand):
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rule: Any = self.optimizers()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
        rule.step()


def not_zeroed_fit(bad: type[Fitted], good: type[Fitted], is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    fit((bad if is_sick else good)(network, sgd), batches(80), watch)
    return scored(network)


def not_zeroed_loop(is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer = sgd(network.parameters())
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer, zeroed=not is_sick):
            watcher.step(optimizer, loss)
    return scored(network)


def loss_cut_off(network: nn.Module, batch: Batch, is_sick: bool) -> Tensor:
    """The error "does not require grad" silenced, not repaired."""
    with torch.set_grad_enabled(not is_sick):
        loss = functional.cross_entropy(network(batch[0]), batch[1])
    return loss.requires_grad_() if is_sick else loss


def loss_of_inner_step(network: nn.Module, batch: Batch, is_sick: bool) -> Tensor:
    """The loss after one step of an inner loop, as in MAML (1703.03400), which starts from the weights' ``.data``."""
    (learned, held), (labels, held_labels) = (part.chunk(2) for part in batch)
    own = dict(network.named_parameters())
    fast = {name: param.data.clone().requires_grad_() if is_sick else param for name, param in own.items()}
    inner = functional.cross_entropy(functional_call(network, fast, (learned,)), labels)
    slopes = torch.autograd.grad(inner, [*fast.values()], create_graph=True)
    fast = {name: param - 0.1 * slope for (name, param), slope in zip(fast.items(), slopes, strict=True)}
    return functional.cross_entropy(functional_call(network, fast, (held,)), held_labels)


class NoGradient(Fitted):
    def __init__(self, loss_of: Callable[..., Tensor], is_sick: bool) -> None:
        super().__init__(two_layers(), adam)
        self.loss_of, self.is_sick = loss_of, is_sick

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss_of(self.network, batch, self.is_sick)


def no_gradient_fit(loss_of: Callable[..., Tensor], is_sick: bool, watch: Watch) -> float:
    module = NoGradient(loss_of, is_sick)
    fit(module, batches(80), watch)
    return scored(module.network)


def no_gradient_loop(loss_of: Callable[..., Tensor], is_sick: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for batch in batches(80):
            optimizer.zero_grad()
            loss = loss_of(network, batch, is_sick)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


BOUND = 0.2
steep = partial(SGD, lr=0.25, momentum=0.9)  # too high a rate for a CNN of digits whose gradients are not clipped


def pictures() -> Split:
    data = images()
    return Split(data.inputs.view(-1, 1, 8, 8), data.targets, data.test_inputs.view(-1, 1, 8, 8), data.test_targets)


class ClipsByHand(ByHand):
    """Clips with Lightning's clip_gradients."""

    early: bool

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rule: Any = self.optimizers()
        rule.zero_grad()
        loss = self.loss(self.network(batch[0]), batch[1])
        if self.early:
            self.clip_gradients(rule, BOUND, "norm")
        self.manual_backward(loss)
        if not self.early:
            self.clip_gradients(rule, BOUND, "norm")
        rule.step()


class ClipsInTrainingStep(Fitted):
    """Clips where the loss is computed, which is before Lightning's backward pass."""

    early: bool

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self.network(batch[0]), batch[1])
        if self.early:
            clip_grad_norm_(self.parameters(), BOUND)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if not self.early:
            clip_grad_norm_(self.parameters(), BOUND)


class ClipsACopy(Fitted):
    """Clips the parameters of the network that was kept before it was copied."""

    early: bool

    def __init__(self, network: nn.Module, *args: Any) -> None:
        super().__init__(network, *args)
        self.before = [deepcopy(network)]  # in a list: no module of this one

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        clip_grad_norm_((self.before[0] if self.early else self.network).parameters(), BOUND)


def idle_clip_fit(kind: Any, is_sick: bool, watch: Watch) -> float:
    data, network = pictures(), cnn()
    module = kind(network, steep)
    module.early = is_sick
    fit(module, batches(80, data), watch)
    return scored(network, data)


def idle_clip_loop(of_copy: bool, is_sick: bool, watch: Watch) -> float:
    data, network = pictures(), cnn()
    clipped: Iterable[nn.Parameter] = [*(deepcopy(network) if of_copy and is_sick else network).parameters()]
    early, optimizer = is_sick and not of_copy, steep(network.parameters())
    with watch.loop(network) as watcher:
        for x, y in batches(80, data):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            if early:
                clip_grad_norm_(clipped, BOUND)
            loss.backward()
            watcher.read(optimizer)
            if not early:
                clip_grad_norm_(clipped, BOUND)
            watcher.step(optimizer, loss)
    return scored(network, data)


ZEROED, CUT = ("gradients are not zeroed",), ("frozen or detached part",)
IDLE = ("clip without effect",)
FORUMS = "forums: loss.backward() without optimizer.zero_grad()"

GRADIENTS: dict[str, Program] = {
    "zero_grad is missing, fit": sick(
        FORUMS, partial(not_zeroed_fit, NeverZeroed, Fitted), "carried-over", ZEROED, "first.weight"
    ),
    "zero_grad is missing, manual fit": sick(
        FORUMS, partial(not_zeroed_fit, NeverZeroedByHand, ByHand), "carried-over", ZEROED, "first.weight"
    ),
    "zero_grad is missing, loop": sick(FORUMS, not_zeroed_loop, "carried-over", ZEROED, "first.weight"),
    "a detached loss with requires_grad_(), fit": sick(
        "forums: element 0 of tensors does not require grad", partial(no_gradient_fit, loss_cut_off),
        "stalled unmoved", CUT, "first.weight",
    ),
    "a detached loss with requires_grad_(), loop": sick(
        "forums: element 0 of tensors does not require grad", partial(no_gradient_loop, loss_cut_off),
        "stalled unmoved", CUT, "first.weight",
    ),
    "an inner step on .data, fit": sick(
        "forums on MAML by hand", partial(no_gradient_fit, loss_of_inner_step), "stalled unmoved", CUT, "first.weight"
    ),
    "an inner step on .data, loop": sick(
        "forums on MAML by hand", partial(no_gradient_loop, loss_of_inner_step), "stalled unmoved", CUT, "first.weight"
    ),
    "a clip before backward(), manual fit": sick(
        "forums: clip_grad_norm_ in the wrong line", partial(idle_clip_fit, ClipsByHand), "idle-clip", IDLE
    ),
    "a clip before backward(), fit": sick(
        "forums: clip_grad_norm_ in training_step", partial(idle_clip_fit, ClipsInTrainingStep), "idle-clip", IDLE
    ),
    "a clip before backward(), loop": sick(
        "forums: clip_grad_norm_ in the wrong line", partial(idle_clip_loop, False), "idle-clip", IDLE
    ),
    "a clip of a copy's parameters, fit": sick(
        "forums: a clip of parameters listed before wrapping", partial(idle_clip_fit, ClipsACopy), "idle-clip", IDLE
    ),
    "a clip of a copy's parameters, loop": sick(
        "forums: a clip of parameters listed before wrapping", partial(idle_clip_loop, True), "idle-clip", IDLE
    ),
}  # fmt: skip
