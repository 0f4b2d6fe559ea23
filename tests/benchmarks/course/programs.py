"""Trainings that learn, and changes after which they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from blind.programs_base import Split, Training, cnn, digits, mlp, patients, r_squared, rebuilt, rows, split
from sklearn.datasets import load_breast_cancer, load_wine, make_friedman1
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

STEPS = 320
adam = partial(Adam, lr=1e-3)


class Last(nn.Module):
    """A recurrent network, and a head on its last state."""

    def __init__(self, kind: Callable[..., nn.RNNBase], inputs: int, outputs: int) -> None:
        super().__init__()
        self.rnn, self.head = kind(inputs, 32, batch_first=True), nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """Tokens, one encoder layer, and a head on their mean."""

    def __init__(self, words: int = 20, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def sums() -> Split:
    """Rows of numbers, and the sign of their sum."""
    x = torch.randn(800, 12, 1, generator=torch.Generator().manual_seed(1))
    return split(x, (x.sum((1, 2)) > 0).long())


def topics() -> Split:
    """Tokens of which a quarter tells the class."""
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (800,), generator=draw)
    tokens = torch.randint(20, (800, 16), generator=draw)
    tells = torch.rand(800, 16, generator=draw) < 0.25
    return split(torch.where(tells, labels[:, None] * 5, tokens), labels)


def friedman() -> Split:
    x, y = make_friedman1(800, noise=0.5, random_state=0)
    targets = torch.tensor(y, dtype=torch.float32)[:, None]
    return split(2 * torch.tensor(x, dtype=torch.float32) - 1, (targets - targets.mean()) / targets.std())


def wave(x: Tensor) -> Tensor:
    return torch.sin(3 * x.sum(1, keepdim=True))


logits = functional.binary_cross_entropy_with_logits
TASKS: dict[str, Training] = {
    "digits": Training(partial(mlp, 64, 64, 10), digits()),
    "digits, deep Tanh": Training(partial(mlp, 64, 48, 48, 48, 10, act=nn.Tanh), digits(), optimizer=adam),
    "digits, CNN": Training(cnn, digits(1, 8, 8), optimizer=adam),
    "digits, CNN with BatchNorm": Training(partial(cnn, norm=True), digits(1, 8, 8)),
    "wine": Training(partial(mlp, 13, 32, 3), rows(load_wine), optimizer=partial(SGD, lr=0.05), batch=16),
    "tumours": Training(partial(mlp, 30, 32, 1), rows(load_breast_cancer, long=False), logits, adam),
    "patients": Training(partial(mlp, 10, 32, 1), patients, functional.mse_loss, adam, r_squared),
    "Friedman": Training(partial(mlp, 10, 64, 64, 1), friedman, functional.mse_loss, adam, r_squared),
    "autoencoder": Training(partial(mlp, 64, 32, 8, 32, 64), rebuilt, functional.mse_loss, adam, r_squared),
    "sums, GRU": Training(partial(Last, nn.GRU, 1, 2), sums, optimizer=partial(Adam, lr=3e-3)),
    "rows, LSTM": Training(partial(Last, nn.LSTM, 8, 10), digits(8, 8), optimizer=partial(Adam, lr=3e-3)),
    "topics, attention": Training(Attention, topics, optimizer=adam),
}
TASKS = {name: replace(task, steps=STEPS) for name, task in TASKS.items()}


Change = Callable[[Training], Training]


def stepped(change: Callable[[Optimizer], None]) -> Change:
    """Call a function before each step of the optimizer."""

    def changed(task: Training) -> Training:
        def made(params: Iterable[nn.Parameter]) -> Optimizer:
            rule = task.optimizer(params)
            rule.register_step_pre_hook(lambda optimizer, *_: change(optimizer))
            return rule

        return replace(task, optimizer=made)

    return changed


def _multiply(factor: float) -> Callable[[Optimizer], None]:
    def change(rule: Optimizer) -> None:
        for group in rule.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(factor)

    return change


def _clear(rule: Optimizer) -> None:
    rule.zero_grad()


def with_rule(rule: Callable[..., Optimizer], **settings: Any) -> Change:
    return lambda task: replace(task, optimizer=partial(rule, **settings))


def other_parameters(task: Training) -> Training:
    """The optimizer holds a copy of the parameters, as after a model is moved or built anew."""

    def made(params: Iterable[nn.Parameter]) -> Optimizer:
        return task.optimizer([nn.Parameter(param.detach().clone()) for param in params])

    return replace(task, optimizer=made)


def with_rate(of_step: Callable[[int], float]) -> Change:
    """Multiply the learning rate after each step by what a function of the step says."""

    def changed(task: Training) -> Training:
        def made(params: Iterable[nn.Parameter]) -> Optimizer:
            rule = task.optimizer(params)
            schedule = LambdaLR(rule, of_step)
            rule.register_step_post_hook(lambda *_: schedule.step())
            return rule

        return replace(task, optimizer=made)

    return changed


def with_data(change: Callable[[Split], Split]) -> Change:
    return lambda task: replace(task, data=lambda: change(task.data()))


def blank(data: Split) -> Split:
    return replace(data, inputs=torch.zeros_like(data.inputs))


def misplaced(data: Split) -> Split:
    """Targets in another order than the inputs: those of a data set that was shuffled alone."""
    order = torch.randperm(len(data.targets), generator=torch.Generator().manual_seed(3))
    return replace(data, targets=data.targets[order])


def with_network(change: Callable[[nn.Module], nn.Module]) -> Change:
    return lambda task: replace(task, network=lambda: change(task.network()))


class Around(nn.Module):
    """A network whose input or output is changed."""

    def __init__(self, inner: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


def before(change: Callable[[Tensor], Tensor]) -> Change:
    return with_network(lambda net: Around(net, change, nn.Identity()))


def after(change: Callable[[Tensor], Tensor]) -> Change:
    return with_network(lambda net: Around(net, nn.Identity(), change))


def all_dead(net: nn.Module) -> nn.Module:
    """Biases before ReLUs that keep all units at zero."""
    for name, param in list(net.named_parameters())[:-2]:
        if name.endswith("bias"):
            nn.init.constant_(param, -30.0)
    return net


def all_equal(value: float) -> Callable[[nn.Module], nn.Module]:
    def changed(net: nn.Module) -> nn.Module:
        for param in net.parameters():
            nn.init.constant_(param, value)
        return net

    return changed


def shrunk(net: nn.Module) -> nn.Module:
    for param in net.parameters():
        param.data.mul_(1e-4)
    return net


def frozen_but_bias(net: nn.Module) -> nn.Module:
    for param in list(net.parameters())[:-1]:
        param.requires_grad_(False)
    return net


def rank_of(x: Tensor) -> Tensor:
    """The samples of a batch in another order than their targets."""
    return x[torch.randperm(len(x))]


FAULTS: dict[str, Change] = {
    "rate of 30, SGD": with_rule(SGD, lr=30.0),
    "rate of 30, SGD with momentum": with_rule(SGD, lr=30.0, momentum=0.9),
    "rate of 3, Adam": with_rule(Adam, lr=3.0),
    "rate of 30, AdamW": with_rule(AdamW, lr=30.0),
    "rate of 10, RMSprop": with_rule(RMSprop, lr=10.0),
    "rate of 1e-9": with_rule(SGD, lr=1e-9),
    "rate of 1e-12, Adam": with_rule(Adam, lr=1e-12),
    "rate of zero": with_rule(SGD, lr=0.0),
    "weight decay of 20": with_rule(SGD, lr=0.05, weight_decay=20.0),
    "other parameters": other_parameters,
    "cleared before the step": stepped(_clear),
    "gradient times 1e-9": lambda task: stepped(_multiply(1e-9))(with_rule(SGD, lr=0.1)(task)),
    "rate ends after 3 steps": with_rate(lambda step: float(step < 3)),
    "warm-up of 1e9 steps": lambda task: with_rate(lambda step: step / 1e9)(with_rule(SGD, lr=0.1)(task)),
    "blank inputs": with_data(blank),
    "misplaced targets": with_data(misplaced),
    "shuffled inside of the model": before(rank_of),
    "one sample for all": before(lambda x: x[:1].expand_as(x)),
    "detached and scaled": after(lambda x: x.detach() + 0 * x),
    "output times 1e-9": after(lambda x: 1e-9 * x),
    "all ReLUs dead": with_network(all_dead),
    "all weights zero": with_network(all_equal(0.0)),
    "weights times 1e-4, SGD": lambda task: with_network(shrunk)(with_rule(SGD, lr=0.01)(task)),
    "frozen but for a bias": with_network(frozen_but_bias),
}


def tuned(task: Training, rate: float, rule: Callable[..., Optimizer], **settings: Any) -> Training:
    return replace(task, optimizer=partial(rule, lr=rate, **settings))


HEALTHY: dict[str, Change] = {
    "as it is": lambda task: task,
    "warm-up": with_rate(lambda step: min(1.0, (step + 1) / 100)),
    "cosine": with_rate(lambda step: 0.5 + 0.5 * float(torch.cos(torch.tensor(3.14 * min(step, STEPS) / STEPS)))),
    "batches of 4": lambda task: replace(task, batch=4),
    "large batches": lambda task: replace(task, batch=256),
    "a fifth of the rate": lambda task: with_rate(lambda step: 0.2)(task),
    "noisy inputs": before(lambda x: x + 0.5 * torch.randn_like(x) if x.is_floating_point() else x),
    "Dropout after all": after(lambda x: functional.dropout(x, 0.3)),
    "gradient times 1e-3, Adam": lambda task: stepped(_multiply(1e-3))(with_rule(Adam, lr=1e-3)(task)),
    "weight decay of 0.1": with_rule(AdamW, lr=1e-3, weight_decay=0.1),
    "double rate": with_rate(lambda step: 2.0),
}


def programs(changes: Mapping[str, Change]) -> dict[str, Training]:
    return {f"{task}: {name}": change(made) for task, made in TASKS.items() for name, change in changes.items()}
