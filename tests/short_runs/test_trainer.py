"""A short run is the first steps of the user's run: schedules, lengths, callbacks, and its traces."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gradwatch import GradientTransform
from gradwatch.preflight.verdict import check_training
from gradwatch.remedies import InitializeAgain, Setup
from gradwatch.short_runs.run import Interrupted
from gradwatch.short_runs.sandbox import isolated
from gradwatch.short_runs.trainer import train_with_a_trainer
from gradwatch.transforms import ClipByGlobalNorm
from gradwatch.trial import try_remedies

SCHEDULES = {
    "one cycle": lambda optimizer, length: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, length),
    "cosine": torch.optim.lr_scheduler.CosineAnnealingLR,
}


class Net(LightningModule):
    """Notes the learning rate of each batch, for the class, since copies are trained."""

    rates: ClassVar[list[float]] = []

    def __init__(self, schedule: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.schedule = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), schedule

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return (self.network(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.schedule:
            return optimizer
        scheduler = SCHEDULES[self.schedule](optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data() -> TensorDataset:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def loader() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=16)


def rates_of(train: Any) -> list[float]:
    Net.rates.clear()
    train()
    return Net.rates[:20]


def own_run(module: LightningModule, **options: Any) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with isolated():
        Trainer(accelerator="cpu", logger=False, **quiet, **options).fit(module, loader())


@pytest.mark.parametrize("options", [{"max_epochs": 12}, {"max_steps": 50}, {"max_epochs": 30, "max_steps": 40}])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_the_runs_own_in_a_check_and_in_a_trial(schedule: str, options: dict[str, int]) -> None:
    module = Net(schedule)
    own = rates_of(partial(own_run, module, **options))
    assert rates_of(partial(check_training, module, loader(), options=options)) == own
    setup = Setup(module, options=options)
    assert rates_of(partial(try_remedies, setup, loader(), remedies=[], steps=20)) == own
    assert len(set(own)) == 20


@pytest.mark.parametrize("options", [{"max_epochs": 2}, {"max_steps": 8}])
def test_a_run_that_is_shorter_goes_on_at_its_last_rates(options: dict[str, int]) -> None:
    run = train_with_a_trainer(Net("one cycle"), loader(), options=options)
    assert (run.steps, run.error) == (20, None)
    own = rates_of(partial(own_run, Net("one cycle"), **options))
    assert len(own) == 8
    rates = rates_of(partial(train_with_a_trainer, Net("one cycle"), loader(), options=options))
    assert rates[:8] == own
    assert len(set(rates[8:])) == 1


class Once(IterableDataset[Any]):
    """Data that can be read only once."""

    def __init__(self) -> None:
        self._left = iter(loader())

    def __iter__(self) -> Iterator[Any]:
        return self._left


@pytest.mark.parametrize("options", [{}, {"max_epochs": 1}])
def test_data_that_end_early_end_the_run(options: dict[str, int]) -> None:
    run = train_with_a_trainer(Net(), DataLoader(Once(), batch_size=None), options=options)
    assert (run.steps, run.error) == (4, None)


def test_the_monitor_reads_the_gradients_before_a_callback_clips_them() -> None:
    clip = GradientTransform(ClipByGlobalNorm(1e-3))
    runs = train_with_a_trainer(Net(), loader(), 3, callbacks=[clip]), train_with_a_trainer(Net(), loader(), 3)
    assert runs[0].history[0].total_norm == runs[1].history[0].total_norm
    assert runs[0].history[0].total_norm_after == pytest.approx(1e-3, rel=1e-3)
    same = train_with_a_trainer(Net(), loader(), 3, transforms=[ClipByGlobalNorm(1e-3)])
    assert [snapshot.loss for snapshot in same.history] == [snapshot.loss for snapshot in runs[0].history]


def test_each_training_of_a_trial_gets_its_own_copy_of_a_callback() -> None:
    class Counts(Callback):
        batches = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.batches += 1

    counts = Counts()
    trial = try_remedies(Setup(Net(), options={"callbacks": [counts]}), loader(), remedies=[InitializeAgain()], steps=3)
    assert counts.batches == 0
    assert [row.error for row in trial.rows] == ["", ""]


def test_ctrl_c_gives_the_run_so_far_and_leaves_no_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(steps: int, _: Any) -> None:
        if steps == 3:
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        train_with_a_trainer(Net(), loader(), after_batch=press)
    assert stopped.value.run.steps == 3
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(tmp_path.iterdir())


def test_a_sandbox_puts_the_log_back_and_works_in_a_thread() -> None:
    logger = logging.getLogger("lightning.pytorch")
    before, levels = logger.level, []

    def enter() -> None:
        with isolated():
            levels.append(logger.level)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert levels == [logging.ERROR]
    assert logger.level == before
