"""StepsPastLightning in a fit: which steps it reports, which it leaves to Lightning, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from manual_fits import (
    ANNOUNCED,
    SETUPS,
    UNANNOUNCED,
    ClosureThroughLightning,
    Manual,
    Raw,
    RawWithClosure,
    Sometimes,
    ThroughLightning,
    fp16,
)
from small_fits import Regression, fit, same_weights
from torch import Tensor
from torch.optim import SGD, Optimizer

from gradwatch.callbacks.steps_past_lightning import StepsPastLightning


class Reporting(Callback):
    """Uses the class as the callbacks do; notes how each step was told of, and the gradient that it found."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.optimizers: list[int] = []
        self.norms: list[float] = []
        self.steps = StepsPastLightning(self.before)

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        self.steps.open(pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.steps.mark_announced(optimizer)
        self.note("announced", optimizer)

    def before(self, optimizer: Optimizer) -> None:
        self.note("unannounced", optimizer)

    def note(self, how: str, optimizer: Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.told.append(how)
        self.optimizers.append(id(optimizer))
        self.norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()) if grads else 0.0)

    def on_train_end(self, trainer: Any, pl_module: LightningModule) -> None:
        self.steps.close()


@pytest.mark.parametrize("name", SETUPS)
def test_each_step_is_told_of_once_and_the_weights_are_those_of_a_bare_run(name: str) -> None:
    make, scaled, expected = SETUPS[name]

    def options() -> dict[str, Any]:
        plugins = {"plugins": [fp16()]} if scaled else {}
        return {"max_steps": -1, "limit_train_batches": 2, "max_epochs": 1} | plugins

    reporting = Reporting()
    watched, bare = fit(reporting, make(), **options()), fit(model=make(), **options())
    assert same_weights(watched, bare)
    assert reporting.told == expected
    assert all(norm > 0 for norm in reporting.norms)


def test_a_module_that_steps_both_ways() -> None:
    reporting = Reporting()
    fit(reporting, Sometimes(), max_steps=-1, max_epochs=1, limit_train_batches=6)
    assert reporting.told == (ANNOUNCED * 2 + UNANNOUNCED) * 2


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_hand_made_optimizer_in_automatic_optimization(accumulate: int) -> None:
    class Beside(Regression):
        def on_train_start(self) -> None:
            self.other = SGD(self.net[0].parameters(), lr=0.01)

        def on_after_backward(self) -> None:
            self.other.step()

    reporting = Reporting()
    options = {"max_steps": -1, "max_epochs": 1, "limit_train_batches": 3, "accumulate_grad_batches": accumulate}
    fit(reporting, Beside(), **options)
    assert reporting.told == ((UNANNOUNCED + ANNOUNCED) * 3 if accumulate == 1 else UNANNOUNCED * 3 + ANNOUNCED)


def test_an_optimizer_step_that_is_overridden_and_steps_past_lightning() -> None:
    class Overridden(Regression):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()
            optimizer.optimizer.step()

    reporting = Reporting()
    fit(reporting, Overridden(), max_steps=3)
    assert reporting.told == UNANNOUNCED * 3


@pytest.mark.parametrize("model", [Sometimes, ThroughLightning])
def test_a_step_that_the_scaler_skips_leaves_no_mark(model: type[Manual]) -> None:
    class Overflows(model):
        def step(self, batch_idx: int) -> None:
            self.scale = torch.inf if batch_idx % 3 == 1 else 1.0  # in the batch before the raw step
            super().step(batch_idx)

        def loss(self) -> Tensor:
            return super().loss() * self.scale

    reporting = Reporting()
    fit(reporting, Overflows(), max_steps=-1, max_epochs=1, limit_train_batches=6, plugins=[fp16()])
    last = UNANNOUNCED if model is Sometimes else ANNOUNCED
    assert reporting.told == (ANNOUNCED * 2 + last) * 2
    assert [norm > 1e30 or norm != norm for norm in reporting.norms] == [False, True, False] * 2


class Around(Optimizer):
    """A wrapper in the manner of SAM and Lookahead: an optimizer with the same parameters steps in its step."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})
        self.inner = SGD(self.param_groups, lr=lr)

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        self.inner.step()
        return loss


class Derived(SGD):
    """Calls the ``step`` of the class it is derived from, which has hooks too once an SGD has been made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("optimizer", [Around, Derived])
@pytest.mark.parametrize("model", [Regression, ThroughLightning, Raw, RawWithClosure, ClosureThroughLightning])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_in_the_step_of_another_optimizer_is_a_part_of_it(optimizer: Any, model: Any, scaled: bool) -> None:
    class Wrapped(model):
        def configure_optimizers(self) -> Optimizer:
            SGD(self.parameters(), lr=1.0)
            return optimizer(self.parameters(), lr=0.01)

    reporting = Reporting()
    plugins = [fp16()] if scaled else []
    fit(reporting, Wrapped(), max_steps=-1, max_epochs=1, limit_train_batches=3, plugins=plugins)
    assert reporting.told == (UNANNOUNCED if model in (Raw, RawWithClosure) else ANNOUNCED) * 3
