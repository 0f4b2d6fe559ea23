"""StepsPastLightning without a Trainer: whose steps it reports, and that it changes and holds nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from small_fits import Regression, fit, small_net
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import optimizer as torch_optimizer

from gradwatch.callbacks.steps_past_lightning import StepsPastLightning


def opened(module: nn.Module) -> tuple[StepsPastLightning, list[Optimizer]]:
    seen: list[Optimizer] = []
    steps = StepsPastLightning(seen.append)
    steps.open(module)
    return steps, seen


def hook_counts() -> tuple[int, int]:
    return len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)


def test_optimizers_of_other_models_are_not_reported_and_the_module_is_seldom_asked() -> None:
    asked: list[int] = []

    class Asked(StepsPastLightning):
        def _holds_ours(self, params: Any) -> bool:
            asked.append(1)
            return super()._holds_ours(params)

    steps = Asked(lambda _: pytest.fail("reported"))
    steps.open(nn.Linear(1, 1))
    foreign = SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    for _ in range(1000):
        foreign.step()
    assert len(asked) == 10  # at steps 1, 2, 4, ... 512
    steps.close()


def test_parameters_that_come_later_are_found() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    steps, seen = opened(module)
    SGD(module.parameters(), lr=0.1).step()
    module.append(nn.Linear(1, 1))
    SGD(module[1].parameters(), lr=0.1).step()
    module[0] = nn.Linear(1, 1)
    SGD(module[0].parameters(), lr=0.1).step()
    assert len(seen) == 3
    later = nn.Linear(1, 1)
    early = SGD(later.parameters(), lr=0.1)
    early.step()
    module.append(later)
    early.step()
    assert len(seen) == 4
    steps.close()


def test_a_mark_is_used_once() -> None:
    module = nn.Linear(1, 1)
    optimizer, other = SGD(module.parameters(), lr=0.1), SGD([module.bias], lr=0.1)
    steps, seen = opened(module)
    steps.mark_announced(optimizer)
    optimizer.step()
    optimizer.step()
    other.step()
    assert seen == [optimizer, other]
    steps.close()


def test_an_error_of_the_function_is_raised_and_the_next_step_is_reported() -> None:
    module, calls = nn.Linear(1, 1), []

    def before(optimizer: Optimizer) -> None:
        calls.append(optimizer)
        raise RuntimeError("from before")

    steps = StepsPastLightning(before)
    steps.open(module)
    optimizer = SGD(module.parameters(), lr=0.1)
    for arguments in ((), (lambda: torch.tensor(0.0),)):
        with pytest.raises(RuntimeError, match="from before"):
            optimizer.step(*arguments)
    assert calls == [optimizer] * 2
    steps.close()


def test_a_step_that_raised_does_not_hide_the_next_one() -> None:
    class Fails(Optimizer):
        fails = True

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise RuntimeError("out of memory")

    module = nn.Linear(1, 1)
    steps, seen = opened(module)
    optimizer = Fails(module.parameters(), {})
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    optimizer.fails = False
    optimizer.step()
    optimizer.step()
    assert len(seen) == 3
    steps.close()


@pytest.mark.parametrize("as_keyword", [True, False])
def test_a_closure_gets_and_gives_what_it_did(as_keyword: bool) -> None:
    class Odd(SGD):
        def step(self, closure: Any = None, scale: float = 1.0, **more: Any) -> Any:
            return closure(), scale, more

    module = nn.Linear(1, 1)
    steps, seen = opened(module)
    optimizer = Odd(module.parameters(), lr=0.1)
    arguments = ((), {"closure": lambda: "loss"}) if as_keyword else ((lambda: "loss",), {})
    assert optimizer.step(*arguments[0], **arguments[1], scale=2.0, flag=True) == ("loss", 2.0, {"flag": True})
    assert seen == [optimizer]
    steps.close()


def test_a_module_as_the_argument_of_a_step_is_no_closure() -> None:
    class OfModel(SGD):
        def step(self, model: Any) -> Any:
            return model

    module = nn.Linear(1, 1)
    steps, seen = opened(module)
    assert OfModel(module.parameters(), lr=0.1).step(module) is module
    assert len(seen) == 1
    steps.close()


def test_opened_again_closed_twice_and_dropped_unclosed() -> None:
    before, module = hook_counts(), nn.Linear(1, 1)
    steps, _ = opened(module)
    steps.open(module)
    assert hook_counts() == (before[0] + 1, before[1] + 1)
    steps.close()
    steps.close()
    assert hook_counts() == before
    steps.open(module)
    del steps
    gc.collect()
    assert hook_counts() == before


def test_after_close_nothing_is_held() -> None:
    module = nn.Linear(1, 1)
    optimizer = SGD(module.parameters(), lr=0.1)
    steps, seen = opened(module)
    steps.mark_announced(optimizer)
    optimizer.step(lambda: torch.tensor(0.0))
    optimizer.step()
    refs = [weakref.ref(value) for value in (module, optimizer, module.weight)]
    steps.close()
    seen.clear()
    del module, optimizer
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_parameters_can_be_swapped_while_it_is_open() -> None:
    module = nn.Linear(1, 1)
    optimizer = SGD(module.parameters(), lr=0.1)
    steps, seen = opened(module)
    optimizer.step()
    torch.utils.swap_tensors(module.weight, nn.Parameter(torch.zeros(1, 1)))
    optimizer.step()
    assert len(seen) == 2
    steps.close()


def test_optimizers_are_not_kept_alive_nor_taken_for_each_other() -> None:
    module, other = nn.Linear(1, 1), nn.Linear(1, 1)
    steps, seen = opened(module)
    for index in range(400):
        SGD((other if index % 2 else module).parameters(), lr=0.1).step()
        seen[:] = [None] * len(seen)
    assert len(seen) == 200
    assert len(steps._ownership._values) <= 130
    steps.close()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_is_closed(how: Callable[[Any], Any]) -> None:
    module, count = nn.Linear(1, 1), hook_counts()
    steps = StepsPastLightning(_nothing)
    steps.open(module)
    twin = how(steps)
    assert hook_counts() == (count[0] + 1, count[1] + 1)
    assert twin._module is None
    twin.close()
    steps.close()


def _nothing(optimizer: Optimizer) -> None:
    pass


def test_a_step_in_compiled_code_goes_on() -> None:
    module = nn.Linear(1, 1)
    optimizer = SGD(module.parameters(), lr=0.1)
    module.weight.grad = torch.ones_like(module.weight)
    before = module.weight.detach().clone()
    steps, _ = opened(module)
    torch.compile(lambda: optimizer.step(), backend="eager")()
    assert torch.allclose(module.weight, before - 0.1)
    steps.close()


def test_what_an_ordinary_step_costs() -> None:
    """In automatic optimization: 4 microseconds a step when nothing else runs; far less than a small step takes."""

    class Timed(Callback):
        def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
            optimizer = Adam(pl_module.parameters())
            optimizer.param_groups[0]["params"] = []
            closure = lambda: None  # noqa: E731
            bare = _time(lambda: optimizer.step(closure))
            steps = StepsPastLightning(_nothing)
            steps.open(pl_module)
            self.cost = _time(lambda: optimizer.step(closure)) - bare + _time(lambda: steps.mark_announced(optimizer))
            steps.close()

    timed = Timed()
    fit(timed, Regression(net=small_net), max_steps=1)
    assert timed.cost < 50e-6


def _time(call: Callable[[], Any], times: int = 2000) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(times):
            call()
        best = min(best, time.perf_counter() - start)
    return best / times
