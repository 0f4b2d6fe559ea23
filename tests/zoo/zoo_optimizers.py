"""Optimizers: all of torch's, in all their forms, and a few of people's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from zoo import WIDTH, Expect, Net, Run, Scale, fit, has_columns, loop, mean_square, mlp, module, rows, sgd

from gradwatch import Snapshot

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
FIRST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def steps_with(name: str, kind: str, **options: Any) -> None:
    """An ordinary network with an optimizer of torch's, by its name."""

    def made() -> nn.Module:
        return mlp()

    made.__name__ = name
    skip = "" if hasattr(optim, kind) else f"this torch has no {kind}"
    settings = {"lr": 0.01, **options}
    module(optimizer=lambda model: getattr(optim, kind)(model.parameters(), **settings), expect=FIRST, skip=skip)(made)


steps_with("adafactor", "Adafactor")
steps_with("rprop", "Rprop")
steps_with("asgd", "ASGD")
steps_with("adadelta", "Adadelta")
steps_with("nadam", "NAdam", decoupled_weight_decay=True)
steps_with("radam", "RAdam")
steps_with("adamax_for_each", "Adamax", foreach=True)
steps_with("adam_fused", "Adam", fused=True)
steps_with("adamw_for_each_with_amsgrad", "AdamW", foreach=True, amsgrad=True, maximize=True)
steps_with("adam_with_a_rate_in_a_tensor", "Adam", lr=torch.tensor(0.01))
steps_with("sgd_fused", "SGD", fused=True)
steps_with("rmsprop_centered", "RMSprop", centered=True, momentum=0.1)
steps_with("adagrad", "Adagrad")


@module(batch=lambda: torch.randint(0, 9, (8,)), optimizer=lambda model: optim.SparseAdam(model.parameters(), lr=0.01))
def adam_of_sparse_gradients() -> nn.Module:
    return nn.Embedding(9, WIDTH, sparse=True)


NO_NAMES = "" if TORCH >= (2, 6) else "this torch takes no named parameters"


@module(optimizer=lambda model: optim.SGD(model.named_parameters(), lr=0.01), skip=NO_NAMES)
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


class LikeAnOptimizer:
    """Has what Lightning asks of an optimizer, and no hooks."""

    def __init__(self, params: Any) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), "lr": 0.05}]
        self.defaults: dict[str, Any] = {}
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Any) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        for param in self.param_groups[0]["params"]:
            param.grad = None

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        with torch.no_grad():
            for param in self.param_groups[0]["params"]:
                param.sub_(param.grad, alpha=0.05)
        return loss


@loop(expect=FIRST)
def optimizer_that_is_only_like_one(run: Run) -> None:
    model = run.keep(mlp())
    optimizer = LikeAnOptimizer(model.parameters())
    with run.watch(model) as watcher:
        for _ in range(3):
            watcher.step(optimizer, backward(run, model, optimizer))


@fit(expect=FIRST)
def optimizer_that_is_only_like_one_in_a_fit(run: Run) -> None:
    class Like(Net):
        def configure_optimizers(self) -> Any:
            return LikeAnOptimizer(self.parameters())

    run.trainer(max_epochs=1).fit(run.keep(Like(run)))


def odd_groups(name: str, change: Any, expect: Expect | None = FIRST) -> None:
    """A loop with an optimizer whose groups have been changed."""

    def train(run: Run) -> None:
        def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
            watcher.step(optimizer, backward(run, model, optimizer))

        model = run.keep(mlp())
        optimizer = run.keep(torch.optim.SGD(model.parameters(), lr=0.05))
        change(optimizer.param_groups[0])
        with run.watch(model) as watcher:
            for _ in range(3):
                step(model, optimizer, watcher)

    train.__name__ = name
    loop(expect=expect)(train)


odd_groups("group_with_a_tuple_of_parameters", lambda group: group.update(params=tuple(group["params"])))
odd_groups("group_with_a_rate_in_numpy", lambda group: group.update(lr=np.float32(0.05)))
odd_groups("group_with_text_beside", lambda group: group.update(name="body", weight_decay=0.0, more={"a": [None]}))
odd_groups("group_with_a_tiny_rate", lambda group: group.update(lr=1e-30))
odd_groups("group_with_no_number_as_a_rate", lambda group: group.update(lr=float("nan")), expect=None)


@loop()
def optimizer_with_groups_made_anew(run: Run) -> None:
    class Anew(torch.optim.SGD):
        @property
        def param_groups(self) -> Any:
            return [dict(group) for group in self.kept]

        @param_groups.setter
        def param_groups(self, groups: Any) -> None:
            self.kept = groups

        def add_param_group(self, group: Any) -> None:
            self.kept.append({**self.defaults, **group, "params": list(group["params"])})

    model = run.keep(mlp())
    optimizer = Anew(model.parameters(), lr=0.05)
    with run.watch(model) as watcher:
        for _ in range(3):
            watcher.step(optimizer, backward(run, model, optimizer))


@loop()
def parameters_of_two_models(run: Run) -> None:
    """One model is watched; the optimizer has the parameters of both."""
    other = run.keep(Scale())

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        if len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": list(other.parameters())})
        optimizer.zero_grad()
        loss = run.note(mean_square(model, other(rows())))
        loss.backward()
        watcher.step(optimizer, loss)

    loops(run, step)


@loop()
def optimizer_made_anew_in_each_step(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        fresh = sgd(model)
        watcher.step(fresh, backward(run, model, fresh))

    loops(run, step)
