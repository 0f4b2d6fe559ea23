"""Gradients that nobody clears are found in a loop, and no program that clears, accumulates or overwrites alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import X, Y, mlp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.optim import SGD, Optimizer
from torch.utils.checkpoint import checkpoint

from gradwatch import CarriedOver, Watcher, watch

CLEARS: dict[str, Callable[[Optimizer], None]] = {
    "to None": lambda optimizer: optimizer.zero_grad(),
    "to zero": lambda optimizer: optimizer.zero_grad(set_to_none=False),
    "past autograd": lambda optimizer: [p.grad.data.zero_() for p in params_of(optimizer) if p.grad is not None],
}
either_clear = pytest.mark.parametrize("clear", CLEARS.values(), ids=CLEARS)


def params_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def small() -> nn.Module:
    return mlp([32, 16, 5], nn.Tanh)


def loss_of(model: nn.Module, x: Tensor = X) -> Tensor:
    return cross_entropy(model(x), Y[: len(x)])


def watching(model: nn.Module, **options: Any) -> Watcher:
    return watch(model, every_n_steps=1, on_finding=lambda finding: None, detectors=[CarriedOver()], **options)


def found(watcher: Watcher) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(finding.kind, finding.step, finding.layers) for finding in watcher.findings]


def carried_at(watcher: Watcher) -> list[int]:
    return [snapshot.step for snapshot in watcher.history if snapshot.carried_over]


ALL = ("0.weight", "0.bias", "2.weight", "2.bias")


@pytest.mark.parametrize("optimizer", [SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_a_loop_that_never_clears_is_found_at_step_2(optimizer: type[Optimizer]) -> None:
    model = small()
    chosen = optimizer(model.parameters(), lr=1e-3)
    with watching(model) as watcher:
        for step in range(3):
            loss = loss_of(model)
            loss.backward()
            closure = {"closure": loss.detach} if optimizer is torch.optim.LBFGS else {}
            watcher.step(chosen, loss, **closure)
            assert len(watcher.findings) == (step == 2)
    (finding,) = watcher.findings
    assert found(watcher) == [("carried-over", 1, ALL)]
    assert finding.value == 4
    assert "4 parameters" in finding.message
    assert "0.weight, 0.bias, 2.weight" in finding.message
    assert "optimizer.zero_grad() is missing" in finding.message
    assert [diagnosis.cause for diagnosis in watcher.diagnosis()] == ["gradients are not zeroed"]


def test_it_is_found_where_few_steps_are_measured_and_after_accumulation_and_clips() -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=1e-3)
    with watch(model, every_n_steps=5, dense_steps=1, on_finding=lambda _: None) as watcher:
        for _ in range(12):
            for _ in range(3):
                (loss_of(model) / 3).backward()
            watcher.read(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watcher.step(optimizer)
    assert found(watcher)[0] == ("carried-over", 5, ALL)
    assert watcher.findings[0].is_open


def test_only_the_parameters_that_are_not_cleared_are_named() -> None:
    model = small()
    optimizer, cleared = SGD(model.parameters(), lr=1e-3), SGD(model[0].parameters())
    with watching(model) as watcher:
        for _ in range(3):
            cleared.zero_grad()
            loss_of(model).backward()
            watcher.step(optimizer)
    assert found(watcher) == [("carried-over", 1, ("2.weight", "2.bias"))]


@either_clear
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_loop_that_clears(clear: Callable[[Optimizer], None], when: str) -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=1e-3)
    loss_of(model).backward()  # what a search for a learning rate leaves behind
    with watching(model) as watcher:
        for _ in range(5):
            if when == "before":
                clear(optimizer)
            for _ in range(2):
                loss_of(model).backward()
            watcher.step(optimizer)
            if when == "after":
                clear(optimizer)
    assert carried_at(watcher) == []


def test_one_step_that_is_not_cleared_is_no_finding() -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=1e-3)
    with watching(model) as watcher:
        for step in range(9):
            if step % 3:
                optimizer.zero_grad()
            loss_of(model).backward()
            watcher.step(optimizer)
    assert carried_at(watcher) == [3, 6]
    assert found(watcher) == []


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.makes, self.judges = nn.Linear(8, 32), mlp([32, 16, 1], nn.LeakyReLU)

    def losses(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        fake = self.makes(torch.randn(64, 8))
        return (
            lambda: softplus(-self.judges(fake)).mean(),
            lambda: (softplus(-self.judges(X)) + softplus(self.judges(fake.detach()))).mean(),
        )


def gan(watcher: Watcher, model: Gan, clear: Callable[[Optimizer], None], way: str) -> None:
    makes, judges = SGD(model.makes.parameters(), lr=1e-3), SGD(model.judges.parameters(), lr=1e-3)
    for step in range(8):
        first, second = model.losses()
        if way == "alternate batches":
            optimizer, loss = ((makes, first), (judges, second))[step % 2]
            clear(optimizer)
            loss().backward()
            watcher.step(optimizer)
            continue
        losses = (first(), second()) if way == "all forward passes first" else None
        for i, (optimizer, loss) in enumerate(((makes, first), (judges, second))):
            clear(optimizer)
            (losses[i] if losses else loss()).backward()
            if way == "a step each":
                watcher.step(optimizer)
            else:
                watcher.read(optimizer)
                if losses is None or i == 1:
                    for one in (makes, judges) if losses else (optimizer,):
                        one.step()
        if way != "a step each":
            watcher.end()
            watcher.begin()


@either_clear
@pytest.mark.parametrize("way", ["one batch", "a step each", "alternate batches", "all forward passes first"])
def test_a_gan_whose_generator_reaches_the_discriminators_gradients(
    clear: Callable[[Optimizer], None], way: str
) -> None:
    model = Gan()
    with watching(model) as watcher:
        gan(watcher, model, clear, way)
    assert len(watcher.history) >= 8
    assert carried_at(watcher) == []


@pytest.mark.parametrize("way", ["one batch", "a step each", "alternate batches", "all forward passes first"])
def test_a_gan_that_clears_nothing(way: str) -> None:
    model = Gan()
    with watching(model) as watcher:
        gan(watcher, model, lambda optimizer: None, way)
    # In two steps, that of the generator adds to the discriminator's gradients before the discriminator's own does.
    prefix = "makes." if way in ("a step each", "alternate batches") else ""
    named = {name for snapshot in watcher.history for name in snapshot.carried_over}
    assert named == {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    assert watcher.findings[0].step <= 2
    assert [diagnosis.cause for diagnosis in watcher.diagnosis()] == ["gradients are not zeroed"]


# Each program makes the gradients of one step, and clears them as its kind of training does.
def sam(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(model).backward()
    moved = [0.05 * param.grad for param in params_of(optimizer)]
    shift(optimizer, moved, 1)
    optimizer.zero_grad()
    loss_of(model).backward()
    shift(optimizer, moved, -1)


@torch.no_grad()
def shift(optimizer: Optimizer, by: list[Tensor], sign: int) -> None:
    for param, amount in zip(params_of(optimizer), by, strict=True):
        param.add_(sign * amount)


def penalty_first(model: nn.Module, optimizer: Optimizer) -> None:
    """The penalty's backward pass comes to no layer's output, and adds to all gradients."""
    optimizer.zero_grad()
    (1e-3 * sum(param.square().sum() for param in model.parameters())).backward()
    loss_of(model).backward()


def gradient_penalty(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    x = X.clone().requires_grad_()
    (inner,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (loss_of(model) + inner.square().mean()).backward()


def second_order(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(model).backward(create_graph=True)


def assigned(model: nn.Module, optimizer: Optimizer) -> None:
    params = params_of(optimizer)
    for param, grad in zip(params, torch.autograd.grad(loss_of(model), params), strict=True):
        param.grad = grad


def copied(model: nn.Module, optimizer: Optimizer) -> None:
    """Writes into the gradients of the step before: what they held is gone, though they are the same tensors."""
    grads = torch.autograd.grad(loss_of(model), params_of(optimizer))
    for param, grad in zip(params_of(optimizer), grads, strict=True):
        param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        param.grad.copy_(grad)


def attacked(model: nn.Module, optimizer: Optimizer) -> None:
    """The attack's backward pass leaves gradients behind, which are cleared before the loss's own pass."""
    x = X.clone().requires_grad_()
    loss_of(model, x).backward()
    optimizer.zero_grad()
    loss_of(model, (X + 0.1 * x.grad.sign())).backward()


def decayed(model: nn.Module, optimizer: Optimizer) -> None:
    """Keeps a part of the old gradient on purpose."""
    for param in params_of(optimizer):
        if param.grad is not None:
            param.grad.mul_(0.5)
    loss_of(model).backward()


def meta(model: nn.Module, optimizer: Optimizer) -> None:
    """Takes inner steps with another optimizer, and makes the gradient of the difference (Reptile)."""
    before = [param.detach().clone() for param in params_of(optimizer)]
    inner = SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        inner.zero_grad()
        loss_of(model).backward()
        inner.step()
    for param, old in zip(params_of(optimizer), before, strict=True):
        param.grad = old - param.detach()


PROGRAMS = [
    sam, penalty_first, gradient_penalty, assigned, copied, attacked, decayed, meta,
    pytest.param(second_order, marks=pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")),
]  # fmt: skip


@pytest.mark.parametrize("make_gradients", PROGRAMS)
def test_programs_that_clear_in_another_way(make_gradients: Callable[[nn.Module, Optimizer], None]) -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=1e-3)
    with watching(model) as watcher:
        for _ in range(5):
            make_gradients(model, optimizer)
            watcher.step(optimizer)
    assert len(watcher.history) == 5
    assert carried_at(watcher) == []


class Tied(nn.Module):
    """A layer that is used twice, and a weight that two layers share."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.twice = nn.Embedding(5, 8, sparse=sparse), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5, bias=False)
        if not sparse:
            self.head.weight = self.words.weight

    def forward(self, _: Tensor) -> Tensor:
        return self.head(self.twice(torch.tanh(self.twice(self.words(Y)))))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.twice, self.last, self.reentrant = nn.Linear(32, 16), nn.Linear(16, 16), small()[2], reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(2):
            h = checkpoint(lambda given: torch.tanh(self.twice(given)), h, use_reentrant=self.reentrant)
        return self.last(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 5)
        self.state = torch.zeros(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = self.state.detach()  # truncated backpropagation through time
        for part in x.view(64, 8, 4).unbind(1):
            state = self.cell(part, state)
        self.state = state.detach()
        return self.head(state)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "shared weight": Tied,
    "sparse gradient": lambda: Tied(sparse=True),
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "reentrant checkpoint": lambda: Checkpointed(reentrant=True),
    "called many times": Recurrent,
    "half": lambda: mlp([32, 16, 5], nn.Tanh).bfloat16(),
    "frozen part": lambda: small().requires_grad_(False).append(nn.Linear(5, 5)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("clear", [*CLEARS.values(), None], ids=[*CLEARS, "not at all"])
def test_layers_of_all_kinds(make: Callable[[], nn.Module], clear: Callable[[Optimizer], None] | None) -> None:
    model = make()
    kind = next(model.parameters()).dtype
    optimizer = SGD([param for param in model.parameters() if param.requires_grad], lr=1e-3)
    with watching(model) as watcher:
        for _ in range(4):
            if clear is not None and not (clear is CLEARS["past autograd"] and make is MODELS["sparse gradient"]):
                clear(optimizer)
            elif clear is not None:
                optimizer.zero_grad(set_to_none=False)
            loss_of(model, X.to(kind)).backward()
            watcher.step(optimizer)
    names = tuple(dict.fromkeys(name for name, param in model.named_parameters() if param.requires_grad))
    assert [snapshot.carried_over for snapshot in watcher.history] == [()] + 3 * [() if clear else names]


def test_accumulation_that_the_optimizers_end_at_different_steps() -> None:
    model = small()
    body, head = SGD(model[0].parameters(), lr=1e-3), SGD(model[2].parameters(), lr=1e-3)
    with watching(model) as watcher:
        for step in range(12):
            head.zero_grad()
            loss_of(model).backward()
            watcher.read(head)
            head.step()
            if step % 4 == 3:
                watcher.read(body)
                body.step()
                body.zero_grad()
            watcher.end()
            watcher.begin()
    assert carried_at(watcher) == []
