"""Healthy programs in which several optimizers take turns, or one step has several backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from blind.programs_base import mlp
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import LBFGS, SGD, Adam, Optimizer, RMSprop
from updates.programs_base import (
    Batch,
    ByHand,
    Fitted,
    Program,
    Watch,
    batches,
    fit,
    healthy,
    images,
    losses,
    scored,
    two_layers,
)

logits = functional.binary_cross_entropy_with_logits
STEPS, GAN_STEPS = 60, 100
adam = partial(Adam, lr=3e-3)
second_order = partial(LBFGS, max_iter=4, line_search_fn="strong_wolfe")
steady = partial(Adam, lr=3e-3, betas=(0.0, 0.9))  # as GANs want it


class Adversaries(nn.Module):
    """A generator of points, and the network that tells them from the true ones."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = mlp(2, 32, 2), mlp(2, 32, 1)

    def critic_loss(self, x: Tensor) -> Tensor:
        true, made = self.critic(x), self.critic(self.generator(torch.randn(len(x), 2)).detach())
        return logits(true, torch.ones_like(true)) + logits(made, torch.zeros_like(made))

    def generator_loss(self, x: Tensor) -> Tensor:
        made = self.critic(self.generator(torch.randn(len(x), 2)))
        return logits(made, torch.ones_like(made))

    def score(self) -> float:
        """1, less the distance of the mean of the points that are made from that of the true ones."""
        with torch.no_grad():
            return 1 - (self.generator(torch.randn(512, 2)).mean(0) - 2).norm().item()


class Wasserstein(Adversaries):
    """The critic's weights are cut to a range after each step (1701.07875)."""

    def critic_loss(self, x: Tensor) -> Tensor:
        made: Tensor = self.critic(self.generator(torch.randn(len(x), 2)).detach())
        return (made - self.critic(x)).mean()

    def generator_loss(self, x: Tensor) -> Tensor:
        return -self.critic(self.generator(torch.randn(len(x), 2))).mean()

    def cut(self) -> None:
        with torch.no_grad():
            for param in self.critic.parameters():
                param.clamp_(-0.1, 0.1)


def points(count: int) -> list[Batch]:
    return [(2 + 0.3 * torch.randn(64, 2), torch.zeros(64)) for _ in range(count)]


class Turns(ByHand):
    """Lightning's manual optimization of two optimizers.

    Args:
        network: both networks.
        alternate: one of them in each batch; else both.
        to_none: gradients are set to None, not to zero.
        toggled: each turn asks for the gradients of its own network only.
    """

    def __init__(self, network: Adversaries, alternate: bool, to_none: bool, toggled: bool) -> None:
        super().__init__(network, adam)
        self.alternate, self.to_none, self.toggled = alternate, to_none, toggled

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        pair: Any = self.optimizers()
        network: Any = self.network
        for turn, (rule, loss_of) in enumerate(zip(pair, (network.critic_loss, network.generator_loss), strict=True)):
            if self.alternate and batch_idx % 2 != turn:
                continue
            if self.toggled:
                self.toggle_optimizer(rule)
            rule.zero_grad(set_to_none=self.to_none)
            self.manual_backward(loss_of(batch[0]))
            rule.step()
            if self.toggled:
                self.untoggle_optimizer(rule)
            if turn == 0 and isinstance(network, Wasserstein):
                network.cut()

    def configure_optimizers(self) -> Any:
        return [*both(self.network)]


def both(network: Any) -> tuple[Optimizer, Optimizer]:
    if isinstance(network, Wasserstein):
        return RMSprop(network.critic.parameters(), lr=5e-3), RMSprop(network.generator.parameters(), lr=5e-3)
    return steady(network.critic.parameters()), steady(network.generator.parameters())


def turns_fit(make: Callable[[], Adversaries], options: tuple[bool, bool, bool], watch: Watch) -> float:
    network = make()
    fit(Turns(network, *options), points(GAN_STEPS), watch)
    return network.score()


def turns_loop(make: Callable[[], Adversaries], alternate: bool, to_none: bool, watch: Watch) -> float:
    """One step of the watcher is a batch, or a turn where a batch is of one network."""
    network = make()
    pair = both(network)
    with watch.loop(network) as watcher:
        for at, (x, _) in enumerate(points(GAN_STEPS)):
            for turn, (optimizer, loss_of) in enumerate(
                zip(pair, (network.critic_loss, network.generator_loss), strict=True)
            ):
                if alternate and at % 2 != turn:
                    continue
                optimizer.zero_grad(set_to_none=to_none)
                loss = loss_of(x)
                loss.backward()
                watcher.read(optimizer)
                optimizer.step()
                if turn == 0 and isinstance(network, Wasserstein):
                    network.cut()
            watcher.end(loss)
    return network.score()


def turns_each_a_step(to_none: bool, watch: Watch) -> float:
    """One step of the watcher is a turn, and each batch has both."""
    network = Adversaries()
    pair = both(network)
    with watch.loop(network) as watcher:
        for x, _ in points(GAN_STEPS):
            for optimizer, loss_of in zip(pair, (network.critic_loss, network.generator_loss), strict=True):
                optimizer.zero_grad(set_to_none=to_none)
                loss = loss_of(x)
                loss.backward()
                watcher.step(optimizer, loss)
    return network.score()


class TwoParts(ByHand):
    """Both optimizers step after one backward pass, or each after its own."""

    joint: bool

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rules: Any = self.optimizers()
        if self.joint:
            for rule in rules:
                rule.zero_grad()
            self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
            for rule in rules:
                rule.step()
            return
        for rule in rules:
            self.toggle_optimizer(rule)
            rule.zero_grad()
            self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
            rule.step()
            self.untoggle_optimizer(rule)

    def configure_optimizers(self) -> Any:
        network: Any = self.network
        return [adam(network.first.parameters()), SGD(network.head.parameters(), lr=0.2)]


def two_parts_fit(joint: bool, watch: Watch) -> float:
    network = two_layers()
    module = TwoParts(network, adam)
    module.joint = joint
    fit(module, batches(STEPS), watch)
    return scored(network)


class Accumulates(ByHand):
    """Four batches a step."""

    zeroed_after: bool

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rule: Any = self.optimizers()
        if batch_idx % 4 == 0 and not self.zeroed_after:
            rule.zero_grad()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]) / 4)
        if batch_idx % 4 == 3:
            rule.step()
            if self.zeroed_after:
                rule.zero_grad(set_to_none=False)


def accumulates_by_hand(zeroed_after: bool, watch: Watch) -> float:
    network = two_layers()
    module = Accumulates(network, adam)
    module.zeroed_after = zeroed_after
    fit(module, batches(2 * STEPS), watch)
    return scored(network)


def accumulates_fit(watch: Watch) -> float:
    network = two_layers()
    fit(Fitted(network, adam), batches(2 * STEPS), watch, accumulate_grad_batches=4)
    return scored(network)


def accumulates_loop(zeroed_after: bool, watch: Watch) -> float:
    network = two_layers()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for at, (x, y) in enumerate(batches(2 * STEPS)):
            if at % 4 == 0 and not zeroed_after:
                optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            (loss / 4).backward()
            if at % 4 == 3:
                watcher.step(optimizer, loss)
                if zeroed_after:
                    optimizer.zero_grad(set_to_none=False)
    return scored(network)


@torch.no_grad()
def climb(params: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """Move the parameters up the gradient, as SAM does (2010.01412); return the moves."""
    held = [param for param in params if param.grad is not None]
    norm = torch.stack([param.grad.norm() for param in held if param.grad is not None]).norm() + 1e-12
    for param in held:
        assert param.grad is not None
        move = 0.05 * param.grad / norm
        param.add_(move)
        yield move


@torch.no_grad()
def climb_down(params: Iterable[nn.Parameter], moves: Iterable[Tensor]) -> None:
    for param, move in zip(params, moves, strict=True):
        param.sub_(move)


class Sharpness(ByHand):
    """SAM by hand: two backward passes a step."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        rule: Any = self.optimizers()
        params = [*self.network.parameters()]
        rule.zero_grad()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
        moves = [*climb(params)]
        rule.zero_grad()
        self.manual_backward(self.loss(self.network(batch[0]), batch[1]))
        climb_down(params, moves)
        rule.step()


def sharpness_fit(watch: Watch) -> float:
    network = two_layers()
    fit(Sharpness(network, adam), batches(STEPS), watch)
    return scored(network)


def sharpness_loop(watch: Watch) -> float:
    network = two_layers()
    params = [*network.parameters()]
    optimizer = adam(params)
    with watch.loop(network) as watcher:
        for x, y in batches(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(network(x), y).backward()
            moves = [*climb(params)]
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            loss.backward()
            climb_down(params, moves)
            watcher.step(optimizer, loss)
    return scored(network)


def two_losses(watch: Watch) -> float:
    """Two backward passes whose gradients are to be added."""
    network = two_layers()
    optimizer = adam(network.parameters())
    with watch.loop(network) as watcher:
        for x, y in batches(STEPS):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            loss.backward()
            (1e-3 * network(x).square().mean()).backward()
            watcher.step(optimizer, loss)
    return scored(network)


def whole() -> list[Batch]:
    """All samples, thirty times: LBFGS is made for a loss that stays the same."""
    data = images()
    return [(data.inputs, data.targets)] * 30


def closure_fit(watch: Watch) -> float:
    network = two_layers()
    fit(Fitted(network, second_order), whole(), watch)
    return scored(network)


def closure_loop(watch: Watch) -> float:
    network = two_layers()
    optimizer = second_order(network.parameters())
    with watch.loop(network) as watcher:
        for x, y in whole():

            def closure(x: Tensor = x, y: Tensor = y) -> Any:
                return next(losses(network, [(x, y)], optimizer))

            watcher.step(optimizer, closure().detach(), closure=closure)
    return scored(network)


TURNS: dict[str, Program] = {
    **{
        f"GAN, {'alternate batches' if alternate else 'the same batch'}, "
        f"{'gradients to None' if to_none else 'gradients to zero'}, {form}": healthy("1406.2661", run)
        for alternate in (False, True)
        for to_none in (True, False)
        for form, run in {
            "manual fit": partial(turns_fit, Adversaries, (alternate, to_none, False)),
            "loop": partial(turns_loop, Adversaries, alternate, to_none),
        }.items()
    },
    "GAN, each turn a step, gradients to None, loop": healthy("1406.2661", partial(turns_each_a_step, True)),
    "GAN, each turn a step, gradients to zero, loop": healthy("1406.2661", partial(turns_each_a_step, False)),
    "GAN with toggled optimizers, manual fit": healthy(
        "Lightning's example", partial(turns_fit, Adversaries, (False, True, True))
    ),
    "a critic with cut weights, manual fit": healthy(
        "1701.07875", partial(turns_fit, Wasserstein, (False, True, False))
    ),
    "a critic with cut weights, loop": healthy("1701.07875", partial(turns_loop, Wasserstein, False, True)),
    "two optimizers after one backward pass, manual fit": healthy(
        "Lightning's documentation", partial(two_parts_fit, True)
    ),
    "two optimizers, toggled, manual fit": healthy("Lightning's documentation", partial(two_parts_fit, False)),
    "four batches a step, fit": healthy("accumulate_grad_batches", accumulates_fit),
    "four batches a step, manual fit": healthy("Lightning's documentation", partial(accumulates_by_hand, False)),
    "four batches a step, zeroed after it, manual fit": healthy(
        "Lightning's documentation", partial(accumulates_by_hand, True)
    ),
    "four batches a step, loop": healthy("forums", partial(accumulates_loop, False)),
    "four batches a step, zeroed after it, loop": healthy("forums", partial(accumulates_loop, True)),
    "SAM, manual fit": healthy("2010.01412", sharpness_fit),
    "SAM, loop": healthy("2010.01412", sharpness_loop),
    "two losses a step, loop": healthy("forums", two_losses),
    "LBFGS with a closure, fit": healthy("torch.optim", closure_fit),
    "LBFGS with a closure, loop": healthy("torch.optim", closure_loop),
}
