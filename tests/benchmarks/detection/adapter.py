"""Any program as a LightningModule and its data, to which remedies can be applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from program import Batch, Program
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from training import all_finite, lowered

SCORE = "val_accuracy_or_r2"  # a Trial takes a metric with accuracy in its name as better when larger


class Trained(LightningModule):
    """A program: its network, loss, optimizer and schedule.

    Args:
        program: whose.
        seed: of the network's first weights.
    """

    def __init__(self, program: Program, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.program, self.network = program, program.network()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with lowered(self.program.half):
            return self.program.objective(self.network, batch)

    def backward(self, loss: Tensor) -> None:
        """With the program's static loss scale, if it has one; a step that is skipped has no gradients."""
        half = self.program.half
        (loss * (half.scale if half else 1.0)).backward()
        grads = [param.grad for param in self.parameters() if half and param.grad is not None]
        for grad in grads:
            grad.div_(half.scale)
        if half and half.skips and not all_finite(grads):
            self.zero_grad()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log(SCORE, self.program.score(self.network, batch))

    def configure_optimizers(self) -> Any:
        optimizer = self.program.optimizer(self.network)
        if self.program.schedule is None:
            return optimizer
        schedule = LambdaLR(optimizer, self.program.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Drawn(IterableDataset[Batch]):
    """The batches of a run."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program, self.seed = program, seed

    def __iter__(self) -> Iterator[Batch]:
        return self.program.batches(self.seed)


def half_of_test(program: Program, first: bool) -> Batch:
    """The half of the test data for choosing remedies, or the half for judging them."""
    x, y = program.data().test
    return (x[::2], y[::2]) if first else (x[1::2], y[1::2])


class Batches(LightningDataModule):
    """The batches of a run, and for validation the first half of the test data."""

    def __init__(self, program: Program, seed: int) -> None:
        super().__init__()
        self.program, self.seed = program, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Drawn(self.program, self.seed), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([half_of_test(self.program, first=True)], batch_size=None)


def options_of(program: Program) -> Mapping[str, Any]:
    """Return the Trainer's arguments for a program."""
    accumulate = {"accumulate_grad_batches": program.accumulate} if program.accumulate > 1 else {}
    return {**program.options, **accumulate}


def judge(program: Program, network: nn.Module) -> float:
    """Return the score on the half of the test data for judging, -1 for NaN."""
    was = network.training
    network.eval()
    value = program.score(network, half_of_test(program, first=False))
    network.train(was)
    return max(-1.0, min(1.0, value)) if value == value else -1.0
