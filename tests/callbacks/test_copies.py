"""What a fit leaves behind, and copies made while it runs: of the model, of the monitor, of the watcher."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from models import Net, assert_no_hooks, loader, mlp, trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradwatch import BackwardTransform, GradientMonitor, GradientTransform, LayerwiseTraining, Stage, Watcher, watch
from gradwatch.transforms import ClipByGlobalNorm, Standardize

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": lambda value: torch.load(_saved(value), weights_only=False),
}
MEASURED, BETWEEN = 4, 5  # with every_n_steps=2 after two dense steps


def _saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def quiet(**options: Any) -> GradientMonitor:
    settings = {"every_n_steps": 2, "dense_steps": 2, "summary": False, "on_finding": "raise"}
    return GradientMonitor(**{**settings, **options})


class InTheMiddle(Callback):
    """Calls a function between the forward and the backward pass of a step, when hooks hold the most."""

    def __init__(self, step: int, act: Callable[[LightningModule], Any]) -> None:
        self.step, self.act, self.result = step, act, None

    def on_before_backward(self, trainer: Any, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.global_step == self.step:
            assert any(module._forward_hooks for module in pl_module.modules()) == (self.step == MEASURED)
            self.result = self.act(pl_module)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("step", [MEASURED, BETWEEN])
def test_a_copy_of_the_network_made_in_a_step_trains_by_itself(tmp_path: Path, step: int, how: str) -> None:
    twin = InTheMiddle(step, lambda module: COPIES[how](module.network))
    monitor, alone = quiet(), quiet()
    trainer(tmp_path, alone, max_steps=8).fit(Net(mlp()), loader())
    trainer(tmp_path, monitor, twin, max_steps=8).fit(Net(mlp()), loader())
    assert [s.total_norm for s in monitor.history] == [s.total_norm for s in alone.history]
    before = len(monitor.history)
    again = quiet()
    trainer(tmp_path, again, max_steps=3).fit(Net(twin.result), loader())
    assert len(again.history) == 3
    assert len(monitor.history) == before
    assert again.history[0].calls == {}


def test_a_copy_of_the_whole_module_in_a_step(tmp_path: Path) -> None:
    twin = InTheMiddle(MEASURED, copy.deepcopy)
    trainer(tmp_path, quiet(), twin, max_steps=8).fit(Net(mlp()), loader())
    trainer(tmp_path, max_steps=3).fit(twin.result, loader())


@pytest.mark.parametrize("step", [MEASURED, BETWEEN])
def test_an_average_made_in_a_step_is_the_average(tmp_path: Path, step: int) -> None:
    class Averaging(InTheMiddle):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if self.result is not None:
                self.result.update_parameters(pl_module.network)

    averages = []
    for monitors in ([], [quiet()]):
        make = lambda module: AveragedModel(module.network, multi_avg_fn=get_ema_multi_avg_fn(0.5))  # noqa: E731
        average = Averaging(step, make) if monitors else Unchecked(step, make)
        trainer(tmp_path, *monitors, average, max_steps=8).fit(Net(mlp()), loader())
        averages.append(average.result.module)
    assert all(torch.equal(a, b) for a, b in zip(*(net.state_dict().values() for net in averages), strict=True))


class Unchecked(InTheMiddle):
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if trainer.global_step == self.step:
            self.result = self.act(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.result is not None:
            self.result.update_parameters(pl_module.network)


def test_lightnings_own_averaging(tmp_path: Path) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("EMAWeightAveraging came with lightning 2.6")
    finals = []
    for monitors in ([], [quiet()]):
        model = Net(mlp())
        trainer(tmp_path, *monitors, callbacks.EMAWeightAveraging(decay=0.5), max_steps=8).fit(model, loader())
        finals.append(model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))
    assert [snapshot.step for snapshot in monitors[0].history] == [0, 1, 2, 4, 6]
    assert_no_hooks(model)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("step", [MEASURED, BETWEEN])
def test_a_copy_of_the_monitor_holds_what_was_recorded(tmp_path: Path, step: int, how: str) -> None:
    monitor = quiet()
    twin = InTheMiddle(step, lambda _: COPIES[how](monitor))
    model = Net(mlp())
    trainer(tmp_path, monitor, twin, max_steps=8).fit(model, loader())
    assert [snapshot.step for snapshot in twin.result.history] == [0, 1, 2] + [4] * (step == BETWEEN)
    assert [snapshot.step for snapshot in monitor.history] == [0, 1, 2, 4, 6]
    trainer(tmp_path, twin.result, max_steps=3).fit(Net(mlp()), loader())
    assert [snapshot.step for snapshot in twin.result.history] == [0, 1, 2]
    assert_no_hooks(model)


@pytest.mark.parametrize("how", COPIES)
def test_monitors_that_are_fresh_or_done_are_copied_whole(tmp_path: Path, how: str) -> None:
    fresh = COPIES[how](quiet())
    trainer(tmp_path, fresh, max_steps=4).fit(Net(mlp()), loader())
    done = COPIES[how](fresh)
    assert [snapshot.step for snapshot in done.history] == [0, 1, 2]
    assert done.state_dict() == fresh.state_dict() or str(done.state_dict()) == str(fresh.state_dict())


def test_a_copy_of_a_watcher_watches_nothing() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model) as watcher:
        model(torch.ones(2, 8)).sum().backward()
        twin: Watcher = copy.deepcopy(watcher)
        watcher.step(optimizer)
        assert twin.step(optimizer) is None or twin.history[0].layers == ()
    assert len(watcher.history) == 1


def ours(monitor: GradientMonitor) -> list[Callback]:
    stages = LayerwiseTraining([Stage(["network.4"]), Stage(["*"])])
    backward = BackwardTransform(Standardize(), layers=["network.4"])
    return [monitor, GradientTransform(ClipByGlobalNorm(1.0)), backward, stages]


class Seen(Callback):
    """Weak references to what a step makes: activations, gradients, the loss, and the module itself."""

    def __init__(self) -> None:
        self.refs: list[weakref.ref] = []

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        self.refs += [weakref.ref(pl_module), *(weakref.ref(module) for module in pl_module.modules())]
        pl_module.seen = self.refs

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        self.refs += [weakref.ref(param.grad) for param in pl_module.parameters() if param.grad is not None]
        self.refs += [weakref.ref(param) for param in pl_module.parameters()]


class Handing(Net):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x = batch[0]
        for layer in self.network:
            x = layer(x)
            self.seen.append(weakref.ref(x))
        loss = nn.functional.cross_entropy(x, batch[1])
        self.seen.append(weakref.ref(loss))
        return loss


class Stops(Callback):
    """Raises in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("boom")


def left_behind(tmp_path: Path, callbacks: list[Callback], *, fails_at: int | None = None) -> list[Any]:
    """What is still alive after a fit of which only our callbacks are kept."""
    seen, model = Seen(), Handing(mlp())
    stops = [] if fails_at is None else [Stops(fails_at)]
    run = trainer(tmp_path, *callbacks, seen, *stops, max_steps=9)
    with nullcontext() if fails_at is None else pytest.raises(RuntimeError, match="boom"):
        run.fit(model, loader(64))
    assert_no_hooks(model)
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in run.optimizers)
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in run.optimizers)
    refs = seen.refs
    del run, model, stops, seen  # a Trainer puts the module's log methods on every callback
    gc.collect()
    return [ref() for ref in refs if ref() is not None]


@pytest.mark.parametrize("fails_at", [None, MEASURED, BETWEEN])
def test_after_a_fit_nothing_of_it_is_held(tmp_path: Path, fails_at: int | None) -> None:
    monitor = quiet(total_norm_every_step=True)
    callbacks = ours(monitor)
    assert [type(value) for value in left_behind(tmp_path, callbacks, fails_at=fails_at)] == []
    assert len(monitor.history) >= 3


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(value), Tensor) for value in gc.get_objects())


def test_between_measured_steps_no_tensor_of_the_last_one_is_held() -> None:
    model, x = mlp(nn.Tanh), torch.ones(128, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, every_n_steps=50, dense_steps=1) as watcher:
        before = live_tensors()
        model(x).sum().backward()
        watcher.step(optimizer)
        optimizer.zero_grad()
        assert live_tensors() == before
    assert len(watcher.history) == 1
