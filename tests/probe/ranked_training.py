"""A small network, the batches of several ranks, and what their Snapshots are held against."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from gradwatch import Snapshot, Watcher, watch
from gradwatch.records import COLUMNS

BATCH = 60  # a ReLU's units are judged by at least 100 samples, so by those of two ranks


class Net(nn.Module):
    """ReLUs with dead units, a cell that is called three times, a recurrent network, a norm, a layer never used."""

    def __init__(self, width: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.second = nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 5)
        self.tanh, self.cell, self.norm, self.head = nn.Tanh(), nn.RNNCell(5, 5), nn.LayerNorm(5), nn.Linear(5, 1)
        self.unused, self.steps = nn.Linear(2, 2), nn.GRU(1, 1, batch_first=True)
        with torch.no_grad():
            self.first.bias[:3] = torch.tensor([-9.0, -1.2, -1.0])

    def forward(self, x: Tensor, calls: int = 3) -> Tensor:
        h = self.tanh(self.second(self.relu(self.first(x))))
        state = torch.zeros_like(h)
        for _ in range(calls):
            state = self.cell(h, state)
        over_time, _ = self.steps(state.unsqueeze(-1))  # each unit as a time step
        return self.head(self.norm(state + over_time.squeeze(-1))).squeeze(-1)


class Sequence(nn.Sequential):
    """What sequence parallelism is made for: a ReLU and a norm between two blocks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2), nn.Flatten(0)
        )
        with torch.no_grad():
            self[0].bias[[0, 6]], self[2].bias[1] = -9.0, -1.5


def batch(step: int, ranks: tuple[int, ...]) -> Tensor:
    return torch.cat([torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(9 * step + r)) for r in ranks])


def train(
    model: nn.Module, ranks: tuple[int, ...], steps: int = 7, clip: float | None = None, **options: Any
) -> Watcher:
    """Train on the batches of some ranks, joined."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {"every_n_steps": 3, "dense_steps": 2, "detectors": [], "total_norm_every_step": True, **options}
    with watch(model, **settings) as watcher:
        for step in range(steps):
            x = batch(step, ranks)
            optimizer.zero_grad()
            loss = (model(x) - 0.5).square().mean()
            loss.backward()
            watcher.read(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            watcher.step(optimizer, loss)
    return watcher


def assert_same(name: str, got: list[Snapshot], expected: list[Snapshot], rel: float = 1e-4) -> None:
    """Every number of the Snapshots is that of the others."""
    assert [snapshot.step for snapshot in got] == [snapshot.step for snapshot in expected], name
    runs = ("param_grad_norm", "total_norm", "total_norm_after", "loss", "trace_step", "trace_loss", "trace_total_norm")
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine.layers, mine.kinds, mine.params) == (theirs.layers, theirs.kinds, theirs.params), name
        pairs = {column: (getattr(mine, column), getattr(theirs, column)) for column in (*COLUMNS, *runs)}
        assert list(mine.calls) == list(theirs.calls), name
        pairs |= {f"calls of {layer}": (mine.calls[layer], theirs.calls[layer]) for layer in mine.calls}
        for column, (one, other) in pairs.items():
            np.testing.assert_allclose(one, other, rel, 1e-9, err_msg=f"{name}, step {mine.step}, {column}")


needs_gloo = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="needs torch.distributed with gloo"
)
# What torch 2.4 has in its place, torch.distributed._composable.fsdp, makes CUDA streams even on a CPU's mesh.
needs_fsdp2 = pytest.mark.skipif(
    not hasattr(import_module("torch.distributed.fsdp") if distributed.is_available() else None, "fully_shard"),
    reason="torch.distributed.fsdp.fully_shard (FSDP2) came with torch 2.6",
)


def _begin(rank: int, port: int, work: Callable[[int], None], world: int) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= address | {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    work(rank)
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def in_processes(work: Callable[[int], None], world: int = 2) -> None:
    """Run ``work(rank)`` in several processes at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_begin, (port, work, world), nprocs=world)
