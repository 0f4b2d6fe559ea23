"""Loops with unusual surroundings: settings, threads, gradients made otherwise, optimizers that are none."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from zoo import UNCALLED, WIDTH, Expect, Run, has_columns, loop, mean_square, mlp, rows, sgd
from zoo_modes import CountsFunctions, CountsOperations, DrawsWithEach
from zoo_optimizers import backward, loops

from gradwatch import Snapshot

FIRST: Expect = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


def steps(run: Run, steps: int = 3, **options: Any) -> None:
    """An ordinary loop."""

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        watcher.step(optimizer, backward(run, model, optimizer))

    loops(run, step, steps=steps, **options)


def all_within(name: str, context: Any, expect: Expect | None = FIRST) -> None:
    """A loop that is all inside of a context, the optimizer's steps and the watching of them too."""

    def train(run: Run) -> None:
        with context():
            steps(run)

    train.__name__ = name
    loop(expect=expect)(train)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def warnings_as_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


all_within("loop_in_double", lambda: default_dtype(torch.float64))
all_within("loop_in_bfloat16", lambda: default_dtype(torch.bfloat16))
all_within("loop_in_half", lambda: default_dtype(torch.float16))
all_within("loop_in_autocast", lambda: torch.autocast("cpu", torch.bfloat16))
all_within("loop_that_seeks_anomalies", lambda: torch.autograd.detect_anomaly(check_nan=True))
all_within("loop_that_is_profiled", torch.profiler.profile)
all_within("loop_whose_warnings_are_errors", warnings_as_errors)
all_within("loop_that_makes_numpy_raise", lambda: np.errstate(all="raise"))
all_within("loop_without_torch_functions", torch._C.DisableTorchFunction)
all_within("loop_on_a_default_device", lambda: torch.device("cpu"))


def loses(run: Run, factor: float) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        optimizer.zero_grad()
        loss = run.note(mean_square(model, rows()) * factor)
        loss.backward()
        watcher.step(optimizer, loss)

    loops(run, step)


@loop()
def loop_without_numbers_where_all_that_is_odd_raises(run: Run) -> None:
    with np.errstate(all="raise"), warnings_as_errors():
        loses(run, float("nan"))


@loop()
def loop_with_infinite_losses_where_all_that_is_odd_raises(run: Run) -> None:
    with np.errstate(all="raise"), warnings_as_errors():
        loses(run, 1e38)


def counted(run: Run, mode: Any) -> None:
    """The operations that a mode sees in the steps count as a loss."""

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loss = backward(run, model, optimizer)
        with mode() as counter:
            watcher.step(optimizer, loss)
        run.losses.append(getattr(counter, "calls", 0))

    loops(run, step)


@loop()
def functions_counted_in_the_optimizers_step(run: Run) -> None:
    counted(run, CountsFunctions)


@loop()
def operations_counted_in_the_optimizers_step(run: Run) -> None:
    counted(run, CountsOperations)


@loop()
def numbers_drawn_in_the_optimizers_step(run: Run) -> None:
    counted(run, DrawsWithEach)


@loop(expect=FIRST)
def loop_on_the_meta_device(run: Run) -> None:
    """A tensor that the watching makes without a device would have no values."""

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        loss = backward(run, model, optimizer)
        with torch.device("meta"):
            watcher.step(optimizer, loss)

    loops(run, step)


@loop(expect=FIRST)
def loop_without_gradients_but_where_they_are_needed(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        with torch.enable_grad():
            loss = backward(run, model, optimizer)
        watcher.step(optimizer, loss)

    with torch.no_grad():
        loops(run, step)


def in_a_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@loop(expect=FIRST)
def loop_in_another_thread(run: Run) -> None:
    in_a_thread(lambda: steps(run))


def last_has_columns(history: Sequence[Snapshot]) -> None:
    FIRST(history[-1:])


@loop(expect=last_has_columns, says=UNCALLED)
def loop_in_another_thread_than_it_began_in(run: Run) -> None:
    """The first step is not seen; the later ones are."""
    model = run.keep(mlp())
    optimizer = run.keep(sgd(model))
    with run.watch(model) as watcher:
        in_a_thread(lambda: [watcher.step(optimizer, backward(run, model, optimizer)) for _ in range(4)])


@loop()
def loop_beside_a_thread_that_infers(run: Run) -> None:
    """The thread calls the model all the time; its calls do not change the weights."""
    done = threading.Event()

    def infer(model: nn.Module) -> None:
        x = torch.ones(2, WIDTH)
        while not done.is_set():
            with torch.no_grad():
                model(x)

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        thread = threading.Thread(target=infer, args=(model,))
        thread.start()
        watcher.step(optimizer, backward(run, model, optimizer))
        done.set()
        thread.join()
        done.clear()

    loops(run, step)


@loop()
def loop_that_forks(run: Run) -> None:
    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        child = os.fork()
        if not child:
            with torch.no_grad():
                model(torch.ones(2, WIDTH))
            os._exit(0)
        os.waitpid(child, 0)
        watcher.step(optimizer, backward(run, model, optimizer))

    loops(run, step)


def by_hand(run: Run, gradients: Any) -> None:
    """A loop whose gradients a function makes of the model and a batch."""

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        x = rows()
        loss, grads = gradients(model, x)
        for param, grad in zip(model.parameters(), grads, strict=True):
            param.grad = grad
        watcher.step(optimizer, run.note(loss, x))

    loops(run, step)


@loop()
def gradients_asked_for(run: Run) -> None:
    def ask(model: nn.Module, x: Tensor) -> Any:
        loss = mean_square(model, x)
        return loss, torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)

    by_hand(run, ask)


@loop(says=UNCALLED)
def gradients_of_forward_mode(run: Run) -> None:
    """A derivative along a random direction, and no backward pass at all."""

    def along(model: nn.Module, x: Tensor) -> Any:
        params = {name: param.detach() for name, param in model.named_parameters()}
        direction = {name: torch.randn_like(param) for name, param in params.items()}
        loss, slope = jvp(lambda p: functional_call(model, p, (x,)).square().mean(), (params,), (direction,))
        return loss.detach().requires_grad_() * 1, [slope * value for value in direction.values()]

    by_hand(run, along)


@loop(says=UNCALLED)
def gradients_of_random_search(run: Run) -> None:
    def search(model: nn.Module, x: Tensor) -> Any:
        with torch.no_grad():
            loss = mean_square(model, x)
        return loss.requires_grad_() * 1, [torch.randn_like(param) for param in model.parameters()]

    by_hand(run, search)


@loop()
def input_that_stays_and_learns(run: Run) -> None:
    """An input that requires a gradient is there in all steps; no hook may stay on it."""
    x = rows().requires_grad_()

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        optimizer.zero_grad()
        loss = run.note(mean_square(model, x))
        loss.backward()
        watcher.step(optimizer, loss)
        x.data.add_(x.grad, alpha=0.1)

    loops(run, step)
    assert not x._backward_hooks


@loop()
def graph_that_stays_over_the_steps(run: Run) -> None:
    """The states of a step are a part of the next one's graph."""
    states = [torch.zeros(8, WIDTH)]

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        optimizer.zero_grad()
        states.append(model[0](rows() + states[-1].tanh()))
        loss = run.note(model[1:](states[-1]).square().mean())
        loss.backward(retain_graph=True)
        watcher.step(optimizer, loss)
        states[-1] = states[-1].detach() if len(states) % 2 else states[-1] * 0 + states[-1].detach()

    loops(run, step)


@loop(says=UNCALLED)
def backward_pass_of_an_earlier_step(run: Run) -> None:
    """Delayed gradients: each backward pass is of the loss of the step before."""
    waiting: list[Tensor] = []

    def step(model: nn.Module, optimizer: Any, watcher: Any) -> None:
        optimizer.zero_grad()
        waiting.append(run.note(nn.functional.linear(rows(), model[0].weight.clone()).square().mean()))
        if len(waiting) > 1:
            waiting.pop(0).backward()
        watcher.step(optimizer, run.losses[-1])

    loops(run, step, nn.Sequential(nn.Linear(WIDTH, 2)))
