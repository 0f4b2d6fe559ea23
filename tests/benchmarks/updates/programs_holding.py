"""Programs whose optimizer does not hold the parameters that should learn, or does not move one layer of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from updates.programs_base import Fitted, Program, Watch, batches, fit, losses, scored, sick, two_layers

adam = partial(Adam, lr=3e-3)


def random_features() -> nn.Sequential:
    """A frozen network around a BatchNorm, the only part that is to be tuned (2003.00152)."""
    parts = {"wide": nn.Linear(64, 256), "norm": nn.BatchNorm1d(256), "act": nn.ReLU(), "head": nn.Linear(256, 10)}
    network = nn.Sequential(OrderedDict(parts))
    for part in (network.wide, network.head):
        part.requires_grad_(False)
    return network


def norm_fit(is_sick: bool, watch: Watch) -> float:
    network = random_features()
    held = network.head if is_sick else network
    fit(Fitted(network, lambda _: Adam(held.parameters(), lr=3e-2)), batches(80), watch)
    return scored(network)


def norm_loop(is_sick: bool, watch: Watch) -> float:
    network = random_features()
    optimizer = Adam((network.head if is_sick else network).parameters(), lr=3e-2)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer):
            watcher.step(optimizer, loss)
    return scored(network)


class Shifted(nn.Linear):
    """A Linear like those that libraries for adapters and quantization put in the place of torch's."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Shifted:
        made = cls(layer.in_features, layer.out_features)
        made.load_state_dict(layer.state_dict())
        return made


def wrapped(network: nn.Module) -> nn.Module:
    """Replace each Linear, in place, by one with parameters of its own."""
    for name, child in [*network.named_children()]:
        if isinstance(child, nn.Linear):
            setattr(network, name, Shifted.of(child))
    return network


class BuiltBefore(Fitted):
    """Makes its optimizer before something else makes new parameters of the network's."""

    def __init__(self, change: Callable[[nn.Module], nn.Module], is_sick: bool) -> None:
        super().__init__(two_layers(), adam)
        self.change = change
        self.before = adam(self.network.parameters()) if is_sick else None

    def setup(self, stage: str) -> None:
        self.network = self.change(self.network)

    def configure_optimizers(self) -> Any:
        return self.before or adam(self.network.parameters())


def before_fit(change: Callable[[nn.Module], nn.Module], is_sick: bool, watch: Watch) -> float:
    module = BuiltBefore(change, is_sick)
    fit(module, batches(80), watch)
    return scored(module.network)


def before_loop(change: Callable[[nn.Module], nn.Module], is_sick: bool, watch: Watch) -> float:
    network: nn.Module = two_layers()
    optimizer = adam(network.parameters())
    network = change(network)
    optimizer = optimizer if is_sick else adam(network.parameters())
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(80), optimizer):  # whose zero_grad() leaves this network's gradients
            watcher.step(optimizer, loss)
    return scored(network)


def narrow() -> nn.Sequential:
    """A first layer that has to learn, as only six numbers go on."""
    return two_layers(6)


def all_params(network: nn.Module) -> Optimizer:
    return Adam(network.parameters(), lr=1e-2)


def head_only(network: nn.Module) -> Optimizer:
    """Forget the first layer, as a list of parts written by hand does."""
    return Adam(network.head.parameters(), lr=1e-2)


def at_zero(network: nn.Module) -> Optimizer:
    """Give the first layer a group whose rate is zero: a factor of layer-wise decay that became 0."""
    groups = [{"params": network.first.parameters(), "lr": 0.0}, {"params": network.head.parameters()}]
    return Adam(groups, lr=1e-2)


def unmoved_fit(rule: Callable[[Any], Optimizer], is_sick: bool, watch: Watch) -> float:
    network = narrow()
    fit(Fitted(network, lambda _: (rule if is_sick else all_params)(network)), batches(100), watch)
    return scored(network)


def unmoved_loop(rule: Callable[[Any], Optimizer], is_sick: bool, watch: Watch) -> float:
    network = narrow()
    optimizer = (rule if is_sick else all_params)(network)
    with watch.loop(network) as watcher:
        for x, y in batches(100):
            network.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


def put_back(layer: nn.Module, old: Iterable[Tensor]) -> None:
    """Copy old weights into a layer, as code does that restores a checkpoint or a teacher in the wrong hook."""
    with torch.no_grad():
        for param, before in zip(layer.parameters(), old, strict=True):
            param.copy_(before)


class PutBack(Fitted):
    is_sick: bool

    def on_fit_start(self) -> None:
        self.old = deepcopy([*self.network.first.parameters()])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.is_sick:
            put_back(self.network.first, self.old)


def put_back_fit(is_sick: bool, watch: Watch) -> float:
    network = narrow()
    module = PutBack(network, lambda _: all_params(network))
    module.is_sick = is_sick
    fit(module, batches(100), watch)
    return scored(network)


def put_back_loop(is_sick: bool, watch: Watch) -> float:
    network = narrow()
    old, optimizer = deepcopy([*network.first.parameters()]), all_params(network)
    with watch.loop(network) as watcher:
        for loss in losses(network, batches(100), optimizer):
            watcher.step(optimizer, loss)
            if is_sick:
                put_back(network.first, old)
    return scored(network)


def put_back_before(is_sick: bool, watch: Watch) -> float:
    """The old weights come at the start of a step."""
    network = narrow()
    old, optimizer = deepcopy([*network.first.parameters()]), all_params(network)
    with watch.loop(network) as watcher:
        for x, y in batches(100):
            if is_sick:
                put_back(network.first, old)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            watcher.step(optimizer, loss)
    return scored(network)


CUT = ("frozen or detached part",)
HELD, FIRST = "unmoved stalled", "first.weight"
COPY = "forums: the optimizer was made before copy.deepcopy(model)"
WRAP = "forums, peft: the optimizer was made before the model was wrapped"

HOLDING: dict[str, Program] = {
    "only a BatchNorm trains and no optimizer holds it, fit": sick(
        "forums: the new head is handed over, and all but the norms is frozen", norm_fit, HELD, CUT, "norm.weight"
    ),
    "only a BatchNorm trains and no optimizer holds it, loop": sick(
        "forums: the new head is handed over, and all but the norms is frozen", norm_loop, HELD, CUT, "norm.weight"
    ),
    "the optimizer holds a copy, fit": sick(COPY, partial(before_fit, deepcopy), HELD, CUT, FIRST),
    "the optimizer holds a copy, loop": sick(COPY, partial(before_loop, deepcopy), HELD, CUT, FIRST),
    "the optimizer was made before wrapping, fit": sick(WRAP, partial(before_fit, wrapped), HELD, CUT, FIRST),
    "the optimizer was made before wrapping, loop": sick(WRAP, partial(before_loop, wrapped), HELD, CUT, FIRST),
    "a layer in no optimizer, fit": sick(
        "forums: a list of parameters without the new layer", partial(unmoved_fit, head_only), HELD, CUT, FIRST
    ),
    "a layer in no optimizer, loop": sick(
        "forums: a list of parameters without the new layer", partial(unmoved_loop, head_only), HELD, CUT, FIRST
    ),
    "a layer with a rate of zero, fit": sick(
        "forums: layer-wise decay rounded to 0", partial(unmoved_fit, at_zero), HELD, ("learning rate too low",), FIRST
    ),
    "a layer with a rate of zero, loop": sick(
        "forums: layer-wise decay rounded to 0", partial(unmoved_loop, at_zero), HELD, ("learning rate too low",), FIRST
    ),
    "old weights put back after each step, fit": sick(
        "forums: weights restored in the wrong hook", put_back_fit, HELD, ("step without effect",), FIRST
    ),
    "old weights put back after each step, loop": sick(
        "forums: weights restored in the wrong line", put_back_loop, HELD, ("step without effect",), FIRST
    ),
    "old weights put back before each step, loop": sick(
        "forums: weights restored in the wrong line", put_back_before, HELD, ("step without effect",), FIRST
    ),
}  # fmt: skip
