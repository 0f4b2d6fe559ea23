"""Fits in threads."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from zoo import WIDTH, Net, Run, fit, has_columns

FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")
TIMEOUT = 20


def fit_in_a_thread(run: Run, model: Net) -> threading.Thread:
    own = run.new_callbacks()
    thread = threading.Thread(target=lambda: run.trainer(own=own, max_epochs=1).fit(model))
    thread.start()
    return thread


@fit(expect=FIRST)
def fit_in_another_thread(run: Run) -> None:
    fit_in_a_thread(run, run.keep(Net(run))).join()


class InTurns(Net):
    """Waits for another fit in each step. Nothing in it draws a number: both threads have one random state."""

    def __init__(self, run: Run, barrier: threading.Barrier) -> None:
        super().__init__(run)
        self.wait = lambda: barrier.wait(TIMEOUT)

    def train_dataloader(self) -> Any:
        return list(range(self.batches))  # a DataLoader would draw one

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.wait()
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(batch_idx))
        loss = self(x).square().mean()
        self.wait()
        return self.run.note(loss, x)


@fit(expect=FIRST)
def two_fits_in_two_threads(run: Run) -> None:
    """They take their steps at the same time."""
    barrier = threading.Barrier(2)
    models = [run.keep(InTurns(run, barrier)) for _ in range(2)]
    for thread in [fit_in_a_thread(run, model) for model in models]:
        thread.join()
    run.losses.sort()
