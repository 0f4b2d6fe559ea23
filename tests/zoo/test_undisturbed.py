"""Calls of the model outside the training, in validation or by a callback, do not change the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader
from zoo import WIDTH, Net
from zoo_run import Run

from gradwatch import Snapshot

COLUMNS = ("output_rms", "grad_norm", "grad_output_norm", "grad_output_rms", "gain", "dead_fraction", "weight_norm")


class Fixed(Net):
    """Its batches depend on nothing but their number; it may be validated with gradients."""

    def __init__(self, run: Run, *, validates: bool = False) -> None:
        layers = [nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 2)]
        super().__init__(run, nn.Sequential(*layers), batches=6)
        self.validates, self.seen = validates, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(self.seen))
        return self.run.note(self(x).square().mean(), x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.enable_grad():
            disturb(self)

    def val_dataloader(self) -> Any:
        return DataLoader(range(2)) if self.validates else []


def disturb(model: nn.Module, *, backward: bool = True) -> None:
    """Call the model with huge inputs that depend on nothing."""
    loss = model(torch.full((4, WIDTH), 100.0)).square().mean()
    if backward and loss.requires_grad:
        torch.autograd.grad(loss, list(model.parameters()))


class Disturbs(Callback):
    """Calls the model at one of the hooks."""

    def __init__(self, where: str, *, gradients: bool) -> None:
        self.gradients = gradients
        setattr(self, where, self._call)

    def _call(self, trainer: Any, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        with torch.set_grad_enabled(self.gradients):
            disturb(pl_module)


def history(folder: Path, *callbacks: Callback, validates: bool = False, **settings: Any) -> list[Snapshot]:
    run = Run("watched", folder)

    def train(run: Run) -> None:
        trainer = run.trainer(*callbacks, max_epochs=1, inference_mode=False, **settings)
        trainer.fit(Fixed(run, validates=validates))

    assert not run.trail(train).error
    return run.history


def assert_equal(undisturbed: list[Snapshot], disturbed: list[Snapshot]) -> None:
    assert [snapshot.step for snapshot in disturbed] == [snapshot.step for snapshot in undisturbed]
    for one, other in zip(undisturbed, disturbed, strict=True):
        assert other.layers == one.layers
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(other, column), getattr(one, column), column)
        assert other.calls.keys() == one.calls.keys()
        assert other.input_rms == one.input_rms


WHERE = ["on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward", "on_before_zero_grad"]


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_calls_by_a_callback_do_not_count(where: str, gradients: bool, accumulated: int, tmp_path: Path) -> None:
    settings = {"accumulate_grad_batches": accumulated}
    undisturbed = history(tmp_path, **settings)
    assert_equal(undisturbed, history(tmp_path, Disturbs(where, gradients=gradients), **settings))


@pytest.mark.parametrize("accumulated", [1, 3])
def test_validation_with_gradients_does_not_count(accumulated: int, tmp_path: Path) -> None:
    settings = {"accumulate_grad_batches": accumulated, "val_check_interval": 1, "num_sanity_val_steps": 2}
    assert_equal(history(tmp_path, **settings), history(tmp_path, validates=True, **settings))
