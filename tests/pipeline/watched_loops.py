"""A small network, and a plain loop that trains it under watch()."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gradwatch import Finding, Snapshot, Watcher

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(watcher: Watcher, model: nn.Module, steps: int, lr: float = 0.01) -> list[Snapshot | None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    snapshots = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        snapshots.append(watcher.step(optimizer, loss))
    return snapshots


def hooks_on(model: nn.Module) -> int:
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return modules + sum(len(param._backward_hooks or ()) for param in model.parameters())


def finds(*steps: int, kind: str = "mine") -> Callable[[Snapshot], Finding | None]:
    def detector(snapshot: Snapshot) -> Finding | None:
        if snapshot.step in steps:
            return Finding(kind, ("0",), snapshot.step, 2.0, 1.0, f"{kind} at {snapshot.step}")
        return None

    return detector


def measured(watcher: Watcher) -> list[int]:
    return [snapshot.step for snapshot in watcher.history]
