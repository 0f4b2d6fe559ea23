"""Two processes: the callback travels to them, the first one writes, and the norms are right."""

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
    run = trainer(
        tmp_path, monitor, logger=logger, max_steps=8, strategy="ddp_spawn", devices=2,
        use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(Net(mlp()), loader(batch=16))
    (path,) = tmp_path.rglob("*.jsonl")
    snapshots, findings = read_record(path)
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 5]
    assert findings == []

    # Both were given the same batches, so the mean of their gradients is that of one process.
    alone = GradientMonitor(every_n_steps=5, dense_steps=2, summary=False)
    trainer(tmp_path, alone, max_steps=8).fit(Net(mlp()), loader(batch=16))
    norms = [snapshot.total_norm for snapshot in alone.history]
    assert [snapshot.total_norm for snapshot in snapshots] == pytest.approx(norms, rel=1e-4)
