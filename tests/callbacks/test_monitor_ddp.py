"""Two processes that the Trainer spawns: the callback travels to them, the first one writes what both measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from models import Net, loader, mlp, trainer
from torch.utils.data import DataLoader, DistributedSampler

from gradwatch import GradientMonitor
from gradwatch.reporting.record import read_record


class Dealt(Net):
    """Deals out the samples in turn, so that the batches of two processes are together that of one."""

    def train_dataloader(self) -> DataLoader[Any]:
        data, world = loader().dataset, self.trainer.world_size
        sampler = DistributedSampler(data, world, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=32 // world, sampler=sampler)


def test_spawned_processes_make_one_record(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    monitor = GradientMonitor(every_n_steps=5, dense_steps=2, summary=False)
    run = trainer(
        tmp_path, monitor, logger=logger, max_steps=8, strategy="ddp_spawn", devices=2, use_distributed_sampler=False
    )
    run.fit(Dealt(mlp()))
    (path,) = tmp_path.rglob("*.jsonl")
    snapshots, findings = read_record(path)
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 5]
    assert findings == []

    alone = GradientMonitor(every_n_steps=5, dense_steps=2, summary=False)
    trainer(tmp_path, alone, max_steps=8).fit(Dealt(mlp()))
    for mine, theirs in zip(snapshots, alone.history, strict=True):
        assert mine.total_norm == pytest.approx(theirs.total_norm, rel=1e-4)
        assert mine.trace_loss == pytest.approx(theirs.trace_loss, rel=1e-4)
        for column in ("grad_output_norm", "grad_output_rms", "gain", "output_rms"):
            assert getattr(mine, column) == pytest.approx(getattr(theirs, column), rel=1e-4, nan_ok=True)
