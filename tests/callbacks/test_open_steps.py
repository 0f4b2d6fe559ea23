"""A step's life is bounded by its batches, and only what its loss was computed from counts."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from small_fits import Regression, fit, same_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradwatch import GradientMonitor, Snapshot, watch


def monitor(**options: Any) -> GradientMonitor:
    return GradientMonitor(**{"every_n_steps": 1, "on_finding": lambda _: None, "summary": False, **options})


def rms(snapshot: Snapshot, layer: str = "net.0") -> float:
    return float(snapshot.output_rms[snapshot.layers.index(layer)])


class Marked(nn.Module):
    """Puts out a tensor of which it is known when it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.outputs: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        self.outputs.append(weakref.ref(hidden))
        return hidden.exp()  # whose backward pass needs its output

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(output() is not None for output in self.outputs)


class Manual(Regression):
    """Trains by hand; ``every`` batches it makes a backward pass and steps."""

    def __init__(self, net: Any = None, every: int = 1, raw: bool = False) -> None:
        super().__init__(net, torch.optim.SGD)
        self.automatic_optimization, self.every, self.raw = False, every, raw
        self.alive: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        if self.every and batch_idx % self.every == self.every - 1:
            optimizer = self.optimizers(use_pl_optimizer=not self.raw)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if isinstance(self.net, Marked):
            self.alive.append(self.net.alive)


def test_batches_without_a_backward_pass_are_let_go() -> None:
    model = fit(monitor(), Manual(Marked, every=0), max_steps=-1, max_epochs=2)
    assert max(model.alive) <= 1


def test_the_epoch_in_which_weights_are_averaged_holds_no_batch() -> None:
    class Averaged(Regression):
        alive = 0

        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            self.alive = max(self.alive, self.net[0].alive)

    def net() -> nn.Module:
        return nn.Sequential(Marked(), nn.BatchNorm1d(1))

    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    model = fit([averaging, monitor()], Averaged(net), max_steps=-1, max_epochs=3)
    assert model.alive <= 1


def test_a_plain_loop_without_a_step_holds_no_graph() -> None:
    model = Marked()
    with watch(model, every_n_steps=1):
        for _ in range(5):
            model(torch.ones(2, 4))
        assert model.alive <= 1


@pytest.mark.parametrize("raw", [False, True])
def test_manual_steps_are_seen_whether_lightning_announces_them_or_not(raw: bool) -> None:
    watching = monitor()
    watched = fit(watching, Manual(every=2, raw=raw), max_steps=-1, max_epochs=2)
    assert [snapshot.step for snapshot in watching.history] == [*range(10)]
    assert np.isfinite(watching.history[-1].total_norm)
    assert rms(watching.history[-1]) > 0
    assert same_weights(watched, fit(model=Manual(every=2, raw=raw), max_steps=-1, max_epochs=2))


class InBackward(Regression):
    """One optimizer a parameter, which steps as soon as the gradient is there."""

    def configure_optimizers(self) -> None:
        self.automatic_optimization = False
        self.own = {param: torch.optim.SGD([param], lr=0.02) for param in self.parameters()}
        for param in self.own:
            param.register_post_accumulate_grad_hook(self.step)

    def step(self, param: nn.Parameter) -> None:
        self.own[param].step()
        self.own[param].zero_grad()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))


def test_steps_inside_the_backward_pass_are_measured() -> None:
    watching = monitor()
    watched = fit(watching, InBackward(), max_steps=-1, max_epochs=1)
    last = watching.history[-1]
    assert [snapshot.step for snapshot in watching.history] == [*range(10)]
    assert len(last.params) == len([*watched.parameters()])
    assert last.total_norm == pytest.approx(np.sqrt((last.param_grad_norm**2).sum()))
    assert same_weights(watched, fit(model=InBackward(), max_steps=-1, max_epochs=1))


class ByHand:
    """An optimizer that is none of torch's."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params

    @torch.no_grad()
    def step(self) -> None:
        for param in self.params:
            param -= 0.01 * param.grad
            param.grad = None


class Unseen(Regression):
    def configure_optimizers(self) -> None:
        self.automatic_optimization, self.own = False, ByHand([*self.parameters()])

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        self.own.step()


def test_steps_that_can_not_be_seen_are_said_once() -> None:
    with pytest.warns(UserWarning, match="no optimizer was seen to step") as said:
        fit(monitor(), Unseen(), max_steps=-1, max_epochs=8)
    assert len([one for one in said if "no optimizer was seen" in str(one.message)]) == 1


class Validated(Regression):
    """Is validated on large inputs, with gradients."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        with torch.enable_grad():
            self.net(100 * torch.ones(8, 4))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.arange(2))


class Calls(Callback):
    """Calls the model between two batches."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.net(100 * torch.ones(8, 4))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.net(100 * torch.ones(8, 4))


def plain_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("model", [Regression, Validated])
@pytest.mark.parametrize("others", [[], [Calls()]])
def test_only_the_passes_of_the_loss_count(model: type[Regression], others: list[Callback]) -> None:
    options: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 4, "val_check_interval": 2}
    if model is Regression:
        del options["val_check_interval"]
    plain, mixed = monitor(), monitor()
    fit(plain, Regression(plain_net), max_steps=4, accumulate_grad_batches=4)
    fit([mixed, *others], model(plain_net), num_sanity_val_steps=0, **options)
    for one, other in zip(plain.history, mixed.history, strict=True):
        assert rms(one) == pytest.approx(rms(other))
        assert one.input_rms == pytest.approx(other.input_rms)
        np.testing.assert_allclose(one.dead_fraction, other.dead_fraction)
        np.testing.assert_allclose(one.grad_output_norm, other.grad_output_norm)


class Replaces(Callback):
    """Gives the network another head in the middle of the run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 5:
            pl_module.net[2] = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
            trainer.optimizers[0].add_param_group({"params": [*pl_module.net[2].parameters()]})


def test_a_head_that_is_replaced_is_watched(tmp_path: Path) -> None:
    watching = monitor(record_path=tmp_path / "gradwatch.jsonl")
    fit([Replaces(), watching], Regression(plain_net), max_steps=10)
    assert watching.history[4].layers == ("net.0", "net.1", "net.2")
    assert watching.history[-1].layers == ("net.0", "net.1", "net.2.0", "net.2.1")
    assert (watching.history[-1].grad_norm[[0, 2, 3]] > 0).all()
    assert watching.diagnosis() is not None
    assert [len(snapshot.layers) for snapshot in read(tmp_path)] == [3] * 5 + [4] * 5


def read(folder: Path) -> list[Snapshot]:
    from gradwatch.reporting.record import read_record

    return read_record(folder / "gradwatch.jsonl").snapshots


def test_the_memory_of_other_layers_is_left() -> None:
    first = monitor()
    model = Regression(plain_net)
    fit(first, model, max_steps=4)
    other = monitor(include=["net.0"])
    other.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="history is of 3 layers, and 1 are watched now"):
        fit(other, Regression(plain_net), max_steps=3)
    assert {snapshot.layers for snapshot in other.history} == {("net.0",)}
    assert other.history[0].step == 4


def test_a_fit_with_nothing_left_to_do_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watching = monitor(summary=True)
    model = fit(watching, Validated(plain_net), max_steps=3, logger=True, default_root_dir=tmp_path)
    assert "gradients at step 2" in capsys.readouterr().out
    model.trainer.fit(model)
    assert "gradients at step" not in capsys.readouterr().out
    model.trainer.validate(model, DataLoader(torch.arange(2)), verbose=False)
    assert len(watching.history) == 3
    assert watching.out_of_service == []


def test_a_record_in_a_remote_folder(tmp_path: Path) -> None:
    from gradwatch.reporting.record import read_record

    watching = monitor(record_path="memory://runs/one/gradwatch.jsonl")
    fit(watching, max_steps=3)
    assert [snapshot.step for snapshot in read_record("memory://runs/one/gradwatch.jsonl").snapshots] == [0, 1, 2]
    assert not Path("memory:").exists()
