"""Trials of modules and data of other kinds: workers, streams, plateaus, manual optimization, fitted modules."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from every_remedy import Classifier, labelled, mlp
from lightning.pytorch import LightningDataModule, Trainer
from test_optimizer import TwoOptimizers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gradwatch.remedies import (
    ChangeOptimizer,
    InitializeAgain,
    InsertNormalization,
    LowerLearningRate,
    NotApplicable,
    Setup,
)
from gradwatch.short_runs.batches import SameBatches, with_same_batches
from gradwatch.trial import try_remedies


def data_set(samples: int = 48) -> TensorDataset:
    inputs, _ = labelled(8, samples=samples)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


class Stream(IterableDataset[Any]):
    """Batches without a length, drawn anew from the global random numbers."""

    def __iter__(self) -> Iterator[Any]:
        for _ in range(5):
            inputs = torch.randn(16, 8)
            yield inputs, inputs[:, :3].argmax(1)


class Validated(Classifier):
    """Logs a validation loss, on which its rate depends."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}


class Module(LightningDataModule):
    """Made in ``setup``, as data modules are."""

    made = 0

    def setup(self, stage: str) -> None:
        self.data = data_set()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=16)


def module(kind: type[Classifier] = Classifier) -> Classifier:
    torch.manual_seed(0)
    return kind(mlp(nn.Tanh))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_the_same_with_and_without_workers(workers: int) -> None:
    loader = DataLoader(data_set(), batch_size=16, shuffle=True, num_workers=workers)
    before = torch.get_rng_state()
    epochs = [[batch[1].tolist() for batch in same] for same in [SameBatches(loader, 3)] * 2]
    again = [[batch[1].tolist() for batch in same] for same in [SameBatches(loader, 3)] * 2]
    assert epochs == again
    assert epochs[0] != epochs[1]
    assert torch.equal(before, torch.get_rng_state())


def test_a_loader_with_a_generator_of_its_own_keeps_it() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(data_set(), batch_size=16, shuffle=True, generator=generator)
    before = generator.get_state()
    assert len(list(SameBatches(loader, 0))) == len(SameBatches(loader, 0)) == 3
    assert torch.equal(generator.get_state(), before)


def test_a_stream_without_a_length() -> None:
    trial = try_remedies(module(), DataLoader(Stream(), batch_size=None), remedies=[InsertNormalization()], steps=12)
    assert [row.error for row in trial.rows] == ["", ""]


def test_a_scheduler_that_waits_for_the_validation_gets_it() -> None:
    trial = try_remedies(module(Validated), Module(), remedies=[LowerLearningRate(0.5), ChangeOptimizer()], steps=12)
    assert trial.metric == "val_loss"
    assert not trial.higher_is_better
    assert not any(row.error for row in trial.rows)
    assert [row.result for row in trial.rows] == sorted(row.result for row in trial.rows)


def test_the_data_module_stays_as_it_was() -> None:
    data = Module()
    assert with_same_batches(data, 0) is not data
    try_remedies(module(Validated), data, remedies=[], steps=3)
    assert "train_dataloader" not in vars(data)


def test_several_optimizers_stepped_by_hand() -> None:
    torch.manual_seed(0)
    loader = DataLoader(data_set(), batch_size=16)
    trial = try_remedies(TwoOptimizers(), loader, remedies=[ChangeOptimizer(lr=0.01)], steps=20)
    assert not any(row.error for row in trial.rows)


def test_a_module_that_was_fitted_is_copied_without_its_trainer() -> None:
    fitted = module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, **quiet)
        trainer.fit(fitted, DataLoader(data_set(), batch_size=16))
    assert fitted.trainer is trainer
    treated = InitializeAgain().apply(fitted)
    assert treated._trainer is None
    assert fitted.trainer is trainer
    assert not any(row.error for row in try_remedies(fitted, Module(), remedies=[InitializeAgain()], steps=4).rows)


def test_what_can_not_be_copied_is_refused_with_a_sentence() -> None:
    sick = module()
    sick.kept = torch.ones(1, requires_grad=True) * 2  # part of a graph
    with pytest.raises(NotApplicable, match="can't be copied"):
        InitializeAgain().apply(sick)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl+C as at a terminal: a process in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_real_ctrl_c_ends_the_trial() -> None:
    calls = []

    def interrupt(name: str, done: int, total: int) -> None:
        calls.append(name)
        if done == 12:
            os.kill(os.getpid(), signal.SIGINT)

    setup = Setup(module())
    trial = try_remedies(setup, Module(), remedies=[InitializeAgain()], steps=8, on_progress=interrupt)
    assert trial.interrupted
    assert trial.untreated.error == ""
    assert len(calls) < 16
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
