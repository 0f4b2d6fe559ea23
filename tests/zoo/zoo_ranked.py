"""The work of each of two processes: it trains bare, and then with a fault that only the second process has."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from zoo_learner import WIDE, trained

import gradwatch
from gradwatch import GradientMonitor, Snapshot
from gradwatch.probe import hooks

FITS = ("bare", "detector", "layer")
TIMEOUT = 120


class FailsInOneProcess:
    """A detector that raises on step 7, in the second process alone."""

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.step == 7 and torch.distributed.get_rank() == 1:
            raise RuntimeError("the detector is broken")


class CannotReadInOneProcess(Callback):
    """Breaks the reading of the first layer, in the second process alone, in step 7."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 7:
            hooks.stored_values = unreadable

    def on_train_batch_end(self, *_: Any) -> None:
        hooks.stored_values = READABLE


READABLE = hooks.stored_values


def unreadable(tensor: Tensor) -> Tensor:
    if tensor.shape[-1:] == (WIDE,):
        hooks.stored_values = READABLE
        raise RuntimeError("broken on purpose")
    return READABLE(tensor)


def fit(what: str, folder: Path) -> dict[str, Any]:
    """Train in this process, and return all traces of it."""
    broken = [CannotReadInOneProcess()] if what == "layer" else []
    detectors = [*gradwatch.default_detectors(), *([FailsInOneProcess()] if what == "detector" else [])]
    record = folder / what / "gradwatch.jsonl"
    monitor = GradientMonitor(1, detectors=detectors, on_finding=print, on_error="warn", record_path=record)
    watching = [] if what == "bare" else [monitor, *broken]
    with redirect_stdout(io.StringIO()) as printed:
        outcome = trained(folder, *watching, strategy="ddp", devices=2, use_distributed_sampler=False)
    return {
        "weights": outcome.weights,
        "said": outcome.said,
        "printed": printed.getvalue(),
        "failures": [str(failure) for failure in monitor.out_of_service],
        "steps": [snapshot.step for snapshot in monitor.history],
    }


def work(folder: Path) -> None:
    for what in FITS:
        torch.save(fit(what, folder), folder / f"{what}-{os.environ['RANK']}.pt")


def trained_by_two(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Start two processes, and return the traces of each fit in each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "zoo", "OMP_NUM_THREADS": "1"}
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    code = f"from zoo_ranked import *; work(Path({str(folder)!r}))"
    workers = []
    for rank in "01":
        env = {**os.environ, **shared, **path, "RANK": rank, "LOCAL_RANK": rank}
        workers.append(subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True))
    try:
        for worker in workers:
            _, printed = worker.communicate(timeout=TIMEOUT)
            assert worker.returncode == 0, printed
    finally:
        for worker in workers:
            worker.kill()
    return {what: [torch.load(folder / f"{what}-{rank}.pt") for rank in "01"] for what in FITS}
