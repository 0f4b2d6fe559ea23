"""Optimizers: all of torch's, in all their forms, and a few of people's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from zoo import WIDTH, Expect, Run, has_columns, loop, mean_square, mlp, module, rows, sgd

from gradwatch import Snapshot

FIRST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def steps_with(name: str, kind: Any, **options: Any) -> None:
    def made() -> nn.Module:
        return mlp()

    made.__name__ = name
    module(optimizer=lambda model: kind(model.parameters(), **{"lr": 0.01, **options}), expect=FIRST)(made)


steps_with("adafactor", optim.Adafactor)
steps_with("rprop", optim.Rprop)
steps_with("asgd", optim.ASGD)
steps_with("adadelta", optim.Adadelta)
steps_with("nadam", optim.NAdam, decoupled_weight_decay=True)
steps_with("radam", optim.RAdam)
steps_with("adamax_for_each", optim.Adamax, foreach=True)
steps_with("adam_fused", optim.Adam, fused=True)
steps_with("adamw_for_each_with_amsgrad", optim.AdamW, foreach=True, amsgrad=True, maximize=True)
steps_with("adam_with_a_rate_in_a_tensor", optim.Adam, lr=torch.tensor(0.01))
steps_with("sgd_fused", optim.SGD, fused=True)
steps_with("rmsprop_centered", optim.RMSprop, centered=True, momentum=0.1)
steps_with("adagrad", optim.Adagrad)


@module(batch=lambda: torch.randint(0, 9, (8,)), optimizer=lambda model: optim.SparseAdam(model.parameters(), lr=0.01))
def adam_of_sparse_gradients() -> nn.Module:
    return nn.Embedding(9, WIDTH, sparse=True)


@module(optimizer=lambda model: optim.SGD(model.named_parameters(), lr=0.01))
def parameters_given_with_their_names() -> nn.Module:
    return mlp()


class Signs(optim.Optimizer):
    """A home-made one that replaces the gradients as it steps, and drops them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for param in self.param_groups[0]["params"]:
            if param.grad is not None:
                param.grad = param.grad.sign()
                param.add_(param.grad, alpha=-0.01)
                param.grad = None
        return loss


@module(optimizer=Signs)
def optimizer_that_drops_the_gradients() -> nn.Module:
    return mlp()


class Lookahead:
    """Wraps an optimizer without being one."""

    def __init__(self, inner: optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.step(*args, **kwargs)


@loop()
def wrapper_that_is_no_optimizer(run: Run) -> None:
    model = run.keep(mlp())
    optimizer = Lookahead(run.keep(sgd(model)))
    with run.watch(model) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            loss = run.note(mean_square(model, rows()))
            loss.backward()
            watcher.step(optimizer, loss)


def loops(run: Run, step: Any, model: nn.Module | None = None, steps: int = 3, **options: Any) -> None:
    """A plain loop whose step is a function of the model, the optimizer and the watcher."""
    model = run.keep(model or mlp())
    optimizer = run.keep(sgd(model))
    with run.watch(model, **options) as watcher:
        for _ in range(steps):
            step(model, optimizer, watcher)


def backward(run: Run, model: nn.Module, optimizer: Any) -> Tensor:
    optimizer.zero_grad()
    x = rows()
    loss = run.note(mean_square(model, x), x)
    loss.backward()
    return loss


@loop(expect=FIRST)
def loop_that_clips(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loss = backward(run, model, optimizer)
        watcher.read(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        watcher.step(optimizer, loss)

    loops(run, step)


@loop()
def loop_that_accumulates(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        optimizer.zero_grad()
        for _ in range(3):
            loss = run.note(mean_square(model, rows()))
            (loss / 3).backward()
        watcher.step(optimizer, loss.detach())

    loops(run, step)


@loop()
def loop_that_scales_its_loss(run: Run) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        optimizer.zero_grad()
        x = rows()
        loss = run.note(mean_square(model, x), x)
        scaler.scale(loss * (1e36 if len(run.losses) == 2 else 1.0)).backward()
        watcher.step(optimizer, loss, scaler=scaler)
        scaler.update()

    loops(run, step, steps=4)


@loop()
def loop_that_steps_behind_the_watchers_back(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        backward(run, model, optimizer)
        optimizer.step()

    loops(run, step)


@loop()
def loop_that_steps_now_and_then(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loss = backward(run, model, optimizer)
        if len(run.losses) % 2:
            watcher.step(optimizer, loss)

    loops(run, step, steps=5)


@loop()
def loop_with_sparse_measurements(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        watcher.step(optimizer, backward(run, model, optimizer))

    loops(run, step, steps=6, dense_steps=0, total_norm_every_step=True)


@loop(error="ZeroDivisionError")
def loop_that_ends_with_an_error(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        watcher.step(optimizer, backward(run, model, optimizer))
        backward(run, model, optimizer)
        raise ZeroDivisionError("in the loop")

    loops(run, step)


@loop()
def loop_of_two_watched_models(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loops(run, lambda m, o, w: w.step(o, backward(run, m, o)), steps=1)
        watcher.step(optimizer, backward(run, model, optimizer))

    loops(run, step)


@loop()
def loop_of_one_model_watched_twice(run: Run) -> None:
    model = run.keep(mlp())
    optimizer = run.keep(sgd(model))
    with run.watch(model) as outer, run.watch(model[0]) as inner:
        for _ in range(3):
            loss = backward(run, model, optimizer)
            inner.read(optimizer)
            outer.step(optimizer, loss)
            inner.end(loss), inner.begin()


@loop()
def loop_with_numbers_as_losses(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loss = backward(run, model, optimizer)
        odd = (loss.item(), loss.detach().double(), loss.detach()[None], None, float("nan"), torch.tensor(3))
        watcher.step(optimizer, odd[len(run.losses) % 6])

    loops(run, step, steps=6)


@loop()
def loop_that_leaves_the_watcher_open(run: Run) -> None:
    model = run.keep(mlp())
    optimizer = run.keep(sgd(model))
    watcher = run.watch(model) if run.how != "bare" else run.watch(model).enter_result
    watcher.begin()
    for _ in range(2):
        watcher.step(optimizer, backward(run, model, optimizer))
    getattr(watcher, "close", lambda: None)()


def even_steps_have_columns(history: Sequence[Snapshot]) -> None:
    FIRST([snapshot for snapshot in history if snapshot.step % 2 == 0])
    assert history[-1].step >= 4


@loop(expect=even_steps_have_columns)
def loop_of_two_optimizers(run: Run) -> None:
    """Each of them ends a step, and only the first one's has a forward pass."""
    model = run.keep(mlp())
    first, second = (run.keep(torch.optim.SGD(part.parameters(), lr=0.05)) for part in (model[:2], model[2:]))
    with run.watch(model) as watcher:
        for _ in range(3):
            second.zero_grad()
            loss = backward(run, model, first)
            watcher.step(first, loss)
            watcher.step(second, loss)


@loop(expect=even_steps_have_columns)
def loop_that_steps_twice(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loss = backward(run, model, optimizer)
        watcher.step(optimizer, loss)
        watcher.step(optimizer, loss)

    loops(run, step)
