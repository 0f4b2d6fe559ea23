"""GradientTransform where optimizers step past Lightning, and where nothing steps at all."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from manual_fits import SETUPS, InTheBackwardPass, Manual, Raw, RawWithClosure, Sometimes, fp16
from small_fits import Regression, fit, fit_until, same_weights
from torch import nn
from torch.optim import Adam
from torch.optim import optimizer as torch_optimizer

from gradwatch.callbacks.transform import GradientTransform
from gradwatch.transforms import AddNoise, ClipByGlobalNorm, PercentileClip, StepContext


class Calls:
    """A transform that only notes what it is called with."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.steps: list[int] = []
        self.norms: list[float] = []

    def __call__(self, params: dict[str, nn.Parameter], context: StepContext) -> None:
        self.names.append(list(params))
        self.steps.append(context.step)
        self.norms.append(float(torch.stack([param.grad.norm() for param in params.values()]).norm()))


def short(batches: int = 5, **options: Any) -> dict[str, Any]:
    """Steps past Lightning do not count as steps of the Trainer, so such a fit ends by its batches."""
    return {"max_steps": -1, "max_epochs": 1, "limit_train_batches": batches, **options}


@pytest.mark.parametrize("name", SETUPS)
def test_a_transform_that_does_nothing_leaves_the_weights_bit_for_bit(name: str) -> None:
    make, scaled, told = SETUPS[name]
    plugins = [[fp16()] if scaled else [] for _ in range(2)]
    calls = Calls()
    ours = fit(GradientTransform(calls), make(), **short(2, plugins=plugins[0]))
    assert same_weights(ours, fit(model=make(), **short(2, plugins=plugins[1])))
    assert len(calls.names) == (0 if name == "raw 16-mixed" else len(told))


def by_torch(params: dict[str, nn.Parameter], context: StepContext | None = None) -> None:
    nn.utils.clip_grad_norm_(params.values(), 0.3)


@pytest.mark.parametrize("model", [Raw, Sometimes, RawWithClosure])
def test_a_transform_acts_bit_for_bit_as_the_same_in_the_training_step(model: type[Manual]) -> None:
    class Clips(model):
        def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            super().manual_backward(loss, *args, **kwargs)
            by_torch(dict(self.named_parameters()))

    ours = fit(GradientTransform(by_torch), model(), **short())
    assert same_weights(ours, fit(model=Clips(), **short()))
    assert not same_weights(ours, fit(model=model(), **short()))


def test_one_optimizer_a_parameter_in_the_backward_pass() -> None:
    calls = Calls()
    callback = GradientTransform([calls, PercentileClip(50)])
    fit(callback, InTheBackwardPass(), **short(3))
    names = [name for name, _ in InTheBackwardPass().named_parameters()]
    assert sorted(calls.names) == sorted([[name] for name in names] * 3)
    assert calls.steps == [0] * 8 + [1] * 8 + [2] * 8
    assert [run["steps"] for run in callback.state_dict().values()] == [0] + [3] * 8  # 0: the Trainer's, which rests


class NewEachBatch(Manual):
    def step(self, batch_idx: int) -> None:
        for part in (self.net[0], self.net[3]):
            optimizer = Adam(part.parameters(), lr=0.01)
            optimizer.zero_grad()
            self.manual_backward(self.loss())
            optimizer.step()


def test_optimizers_that_are_made_anew_go_on_with_the_history_of_their_parameters(tmp_path: Path) -> None:
    callback = GradientTransform(PercentileClip(50))
    model = fit(callback, NewEachBatch(), **short(6, log_every_n_steps=2, logger=CSVLogger(tmp_path, version=0)))
    assert [run["steps"] for run in callback.state_dict().values()] == [0, 6, 6]
    assert {"skipped_steps/optimizer_1", "skipped_steps/optimizer_2"} <= set(model.trainer.callback_metrics)
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    step = lines[0].split(",").index("step")
    assert [int(line.split(",")[step]) for line in lines[1:]] == [0, 0, 2, 2, 4, 4]


def test_a_resumed_raw_run_ends_bitwise_as_if_never_stopped(tmp_path: Path) -> None:
    def callback() -> GradientTransform:
        return GradientTransform([PercentileClip(30, history=8), AddNoise(1e-4)])

    whole, resumed = callback(), callback()
    expected = fit(whole, Sometimes(), max_steps=16)
    got = fit(resumed, Sometimes(), max_steps=16, ckpt_path=fit_until(7, tmp_path, callback(), Sometimes()))
    assert whole.state_dict()["0"]["steps"] > 16
    assert same_weights(got, expected)


def test_scaled_gradients_are_left_alone_and_the_way_out_is_said_once() -> None:
    calls = Calls()
    with pytest.warns(UserWarning, match=r"the gradients of SGD.*'16-mixed'.*without use_pl_optimizer") as caught:
        ours = fit(GradientTransform([calls, ClipByGlobalNorm(0.1)]), Raw(), **short(plugins=[fp16()]))
    assert calls.names == []
    assert same_weights(ours, fit(model=Raw(), **short(plugins=[fp16()])))
    said = [str(warning.message) for warning in caught if "GradientTransform" in str(warning.message)]
    assert len(said) == 1


class ByTheScaler(Manual):
    """Steps past Lightning, but through its scaler, which unscales first."""

    def step(self, batch_idx: int) -> None:
        optimizer, scaler = self.optimizers(use_pl_optimizer=False), self.trainer.precision_plugin.scaler
        optimizer.zero_grad()
        self.manual_backward(self.loss())
        scaler.step(optimizer)
        scaler.update()


def test_a_raw_step_through_the_scaler_is_seen_unscaled() -> None:
    calls, bare = Calls(), Calls()
    fit(GradientTransform(calls), ByTheScaler(), **short(plugins=[fp16()]))
    fit(GradientTransform(bare), Raw(), **short(precision="32"))
    assert calls.norms == pytest.approx(bare.norms, rel=0.05)


def test_an_optimizer_that_unscales_in_its_step_is_left_alone() -> None:
    class OwnScaler(Manual):
        def on_train_start(self) -> None:
            self.fused, self.scaler = Adam(self.parameters(), lr=0.01, fused=True), torch.amp.GradScaler("cpu")

        def step(self, batch_idx: int) -> None:
            self.fused.zero_grad()
            self.scaler.scale(self.loss()).backward()
            self.scaler.step(self.fused)
            self.scaler.update()

    calls = Calls()
    with pytest.warns(UserWarning, match="does not change the gradients of Adam"):
        fit(GradientTransform(calls), OwnScaler(), **short())
    assert calls.names == []


class ByHand(Manual):
    """Updates the weights itself."""

    def step(self, batch_idx: int) -> None:
        loss = self.loss()
        for param in self.parameters():
            param.grad = None
        loss.backward()
        with torch.no_grad():
            for param in self.parameters():
                param -= 0.01 * param.grad


def warned(model: LightningModule, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(GradientTransform(ClipByGlobalNorm(1.0)), model, **options)
    return [str(warning.message) for warning in caught if "has transformed nothing" in str(warning.message)]


@pytest.mark.parametrize("options", [short(1), short(5), {"max_steps": -1, "max_epochs": 12}])
def test_a_fit_in_which_nothing_steps_is_told_of_once(options: dict[str, Any]) -> None:
    assert len(warned(ByHand(), **options)) == 1


def test_after_100_batches_it_is_said_in_the_fit() -> None:
    class Looks(ByHand):
        def on_train_batch_end(self, *_: Any) -> None:
            said = [warning for warning in caught if "has transformed nothing" in str(warning.message)]
            assert len(said) == (self.seen >= 100)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(GradientTransform(ClipByGlobalNorm(1.0)), Looks(), max_steps=-1, max_epochs=12)


class NoLoss(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Regression, short()),
        (Regression, {"max_steps": -1, "max_epochs": 11, "accumulate_grad_batches": 150, "limit_train_batches": 10}),
        (Raw, short()),
        (NoLoss, short()),
        (Regression, short(0)),
    ],
)
def test_it_is_not_said_where_something_steps_or_there_is_no_gradient(make: Any, options: dict[str, Any]) -> None:
    assert warned(make(), **options) == []


def test_the_global_hooks_are_gone_after_the_fit_and_after_an_exception() -> None:
    before = len(torch_optimizer._global_optimizer_pre_hooks)

    class Broken(Raw):
        def step(self, batch_idx: int) -> None:
            assert len(torch_optimizer._global_optimizer_pre_hooks) == before + 1
            if batch_idx == 2:
                raise RuntimeError("broken")
            super().step(batch_idx)

    for batches in (2, 4):
        try:
            fit(GradientTransform(ClipByGlobalNorm(1.0)), Broken(), **short(batches))
        except RuntimeError as error:
            assert str(error) == "broken"  # noqa: PT017
        assert len(torch_optimizer._global_optimizer_pre_hooks) == before


def test_a_copy_made_in_the_fit_has_the_state_and_no_hooks() -> None:
    callback = GradientTransform(PercentileClip(50))

    class Copies(Raw):
        def step(self, batch_idx: int) -> None:
            super().step(batch_idx)
            if batch_idx == 2:
                self.twins = [copy.deepcopy(callback)]

    model = fit(callback, Copies(), **short())
    twin = model.twins[0]
    assert twin.state_dict()["0"]["steps"] == 3
    assert callback.state_dict()["0"]["steps"] == 5
    fit(twin, Raw(), **short(2))
    assert twin.state_dict()["0"]["steps"] == 5
    assert callback.state_dict()["0"]["steps"] == 5


def test_an_error_of_a_transform_is_raised_from_an_unannounced_step_too() -> None:
    def fails(params: Any, context: Any) -> None:
        raise ValueError("of the transform")

    for model in (Raw(), RawWithClosure(), InTheBackwardPass()):
        with pytest.raises(ValueError, match="of the transform"):
            fit(GradientTransform(fails), model, **short())


def test_a_chain_that_can_not_be_copied_serves_one_optimizer() -> None:
    class Once(ClipByGlobalNorm):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one of me")

    fit(GradientTransform(Once(1.0)), Raw(), **short(2))
    with pytest.raises(TypeError, match="only one of me"):
        fit(GradientTransform(Once(1.0)), NewEachBatch(), **short(2))
