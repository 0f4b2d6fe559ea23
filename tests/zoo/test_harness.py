"""The harness notices every mistake that a careless callback could make."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from zoo import Net, TrainingCase
from zoo_run import Run, check


class Careless(Callback):
    """Does one of many things that watching must not."""

    def __init__(self, deed: str) -> None:
        self.deed, self.kept = deed, []
        self.history: list[Any] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        getattr(self, self.deed)(pl_module, optimizer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self.deed == "keeps_the_loss":
            self.kept.append(loss)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for lent in ("log", "log_dict"):  # the module's methods, which a Trainer lends to each callback
            vars(self).pop(lent, None)

    def nothing(self, model: Any, optimizer: Any) -> None: ...

    keeps_the_loss = nothing

    def changes_weights(self, model: Any, optimizer: Any) -> None:
        model.net[0].weight.data.add_(1e-7)

    def changes_gradients(self, model: Any, optimizer: Any) -> None:
        model.net[0].weight.grad.nextafter_(torch.tensor(1.0))

    def draws_a_number(self, model: Any, optimizer: Any) -> None:
        torch.rand(1)

    def warns(self, model: Any, optimizer: Any) -> None:
        warnings.warn("careless", stacklevel=2)

    def raises(self, model: Any, optimizer: Any) -> None:
        raise RuntimeError("careless")

    def leaves_a_hook(self, model: Any, optimizer: Any) -> None:
        model.net[0].register_forward_hook(lambda *_: None)

    def leaves_a_hook_on_a_parameter(self, model: Any, optimizer: Any) -> None:
        model.net[0].weight.register_hook(lambda grad: None)

    def leaves_a_hook_on_the_optimizer(self, model: Any, optimizer: Any) -> None:
        optimizer.register_step_post_hook(lambda *_: None)

    def leaves_a_hook_for_all(self, model: Any, optimizer: Any) -> None:
        self.kept = [nn.modules.module.register_module_forward_hook(lambda *_: None)]

    def leaves_an_attribute(self, model: Any, optimizer: Any) -> None:
        model.net[0].seen = True

    def leaves_a_setting(self, model: Any, optimizer: Any) -> None:
        torch.autograd.set_multithreading_enabled(False)

    def keeps_the_model(self, model: Any, optimizer: Any) -> None:
        self.kept = [model]

    def keeps_a_parameter(self, model: Any, optimizer: Any) -> None:
        self.kept = [model.net[0].weight]


FOUND = {
    "changes_weights": "the losses differ|other weights",
    "changes_gradients": "the losses differ|other weights",
    "draws_a_number": "the losses differ",
    "warns": "warned: .*careless",
    "raises": "ended with RuntimeError: careless",
    "leaves_a_hook": "left on the model",
    "leaves_a_hook_on_a_parameter": "left on the model",
    "leaves_a_hook_on_the_optimizer": "left on the model",
    "leaves_a_hook_for_all": "left on the model: .*global",
    "leaves_an_attribute": "left on the model",
    "leaves_a_setting": "other settings",
    "keeps_the_model": "still alive",
    "keeps_a_parameter": "still alive",
    "keeps_the_loss": "still alive",
}


def train(run: Run) -> None:
    run.trainer(max_epochs=1).fit(run.keep(Net(run)))


def check_beside(deed: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = Careless(deed)
    monkeypatch.setattr(Run, "new_callbacks", lambda run: [] if run.how == "bare" else [careless])
    try:
        check(train, TrainingCase(name=deed, train=train), folder, "watched")
    finally:
        torch.autograd.set_multithreading_enabled(True)
        for kept in careless.kept:
            getattr(kept, "remove", lambda: None)()


@pytest.mark.parametrize("deed", FOUND)
def test_a_deed_is_noticed(deed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=FOUND[deed]):
        check_beside(deed, tmp_path, monkeypatch)


def test_a_callback_that_does_nothing_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_beside("nothing", tmp_path, monkeypatch)
