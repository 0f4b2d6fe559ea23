"""Two processes that the Trainer spawns: the callback travels to them, the first one writes what both measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from models import Net, loader, mlp, trainer

from gradwatch import GradientMonitor
from gradwatch.reporting.jsonl import read_record


def test_spawned_processes_make_one_record(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    monitor = GradientMonitor(every_n_steps=5, dense_steps=2, summary=False)
    run = trainer(tmp_path, monitor, logger=logger, max_steps=8, strategy="ddp_spawn", devices=2)
    run.fit(Net(mlp()), loader(batch=16))
    (path,) = tmp_path.rglob("*.jsonl")
    snapshots, findings = read_record(path)
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 5]
    assert findings == []

    # The sampler deals the samples out in turn, so that two batches of 16 are one of 32.
    alone = GradientMonitor(every_n_steps=5, dense_steps=2, summary=False)
    trainer(tmp_path, alone, max_steps=8).fit(Net(mlp()), loader(batch=32))
    for mine, theirs in zip(snapshots, alone.history, strict=True):
        assert mine.total_norm == pytest.approx(theirs.total_norm, rel=1e-4)
        assert mine.trace_loss == pytest.approx(theirs.trace_loss, rel=1e-4)
        for column in ("grad_output_norm", "grad_output_rms", "gain", "output_rms"):
            assert getattr(mine, column) == pytest.approx(getattr(theirs, column), rel=1e-4, nan_ok=True)
