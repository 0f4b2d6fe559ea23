"""What one NaN batch does to a run on real data, unprotected and protected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from models import trainer

from gradwatch import GradientMonitor, GradientTransform
from gradwatch.examples.data import ImageData
from gradwatch.examples.init_he import He
from gradwatch.reporting.record import read_record
from gradwatch.transforms import SkipNonFinite

BAD_STEP = 150


class Poison(Callback):
    """Fills one training batch with NaN."""

    seen = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.seen == BAD_STEP:
            batch[0].copy_(torch.full_like(batch[0], float("nan")))
        self.seen += 1


def train(tmp_path: Path, *callbacks: Callback, steps: int = 300) -> tuple[He, float]:
    """Four epochs over digits beyond the bad batch, and the test accuracy."""
    seed_everything(42, verbose=False)
    data, model = ImageData("digits", batch_size=32), He(64, lr=0.1)
    run = trainer(tmp_path, *callbacks, max_steps=steps, limit_val_batches=0)
    run.fit(model, datamodule=data)
    return model, float(run.test(model, datamodule=data, verbose=False)[0]["test_accuracy"])


def test_a_nan_batch_ruins_an_unprotected_run_and_costs_a_protected_one_a_step(tmp_path: Path) -> None:
    skip = SkipNonFinite()
    monitor = GradientMonitor(summary=False, on_finding=lambda finding: None)
    _, clean = train(tmp_path)
    ruined_model, ruined = train(tmp_path, Poison(), monitor)
    model, protected = train(tmp_path, Poison(), GradientTransform(skip))
    assert any(param.isnan().any() for param in ruined_model.parameters())
    assert [(finding.kind, finding.step) for finding in monitor.findings] == [("nonfinite", BAD_STEP)]
    assert ruined < 0.2
    assert skip.skipped == 1
    assert not any(param.isnan().any() for param in model.parameters())
    assert protected > clean - 0.03
    assert clean > 0.9


def test_a_nan_batch_after_the_last_measured_step_is_found_and_recorded_when_the_fit_ends(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    monitor = GradientMonitor(every_n_steps=1000, summary=False, on_finding=lambda finding: None, record_path=path)
    train(tmp_path, Poison(), monitor, steps=BAD_STEP + 5)
    assert [(finding.kind, finding.step) for finding in monitor.findings] == [("nonfinite", BAD_STEP)]
    assert read_record(path)[1] == monitor.findings
