"""The last step of a fit is measured, so that the table shows how the training ended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gradwatch import GradientMonitor


class Net(LightningModule):
    def __init__(self, *, is_manual: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        self.automatic_optimization = not is_manual

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.head(self.body(batch[0]).relu()).square().mean()
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.SGD(self.parameters(), 0.01)
        return [torch.optim.SGD(part.parameters(), 0.01) for part in (self.body, self.head)]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        yield from ((torch.ones(4),) for _ in range(14))


def loader(batches: int = 7) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(batches * 2, 4)), batch_size=2)


def fit(
    data: Any = None, *, is_manual: bool = False, watched: bool = True, summary: bool = True, **options: Any
) -> tuple[Net, list[int]]:
    torch.manual_seed(0)
    net, monitor = (
        Net(is_manual=is_manual),
        GradientMonitor(every_n_steps=1000, dense_steps=1, summary=summary, record_path=False),
    )
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [monitor] if watched else []
    trainer = Trainer(callbacks=callbacks, enable_checkpointing=False, **quiet, **options)
    trainer.fit(net, loader() if data is None else data)
    return net, [snapshot.step for snapshot in monitor.history]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({"max_epochs": 3}, 20),
        ({"max_steps": 12}, 11),
        ({"max_steps": 12, "max_epochs": -1}, 11),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 5),
        ({"max_epochs": 2, "accumulate_grad_batches": 7}, 1),
        ({"max_epochs": 2, "accumulate_grad_batches": 20}, 1),
        ({"max_epochs": 2, "limit_train_batches": 4}, 7),
        ({"max_epochs": 2, "max_steps": 100}, 13),
    ],
)
def test_the_last_step_is_measured_and_none_between(options: dict[str, Any], last: int) -> None:
    assert fit(**options)[1] == [0, last]


def test_without_a_table_the_last_step_is_like_any_other() -> None:
    assert fit(max_epochs=2, summary=False)[1] == [0]


def test_manual_optimization_counts_the_steps_of_all_optimizers() -> None:
    assert fit(is_manual=True, max_steps=20)[1] == [0, 9]
    assert fit(is_manual=True, max_epochs=2)[1] == [0, 13]


def test_the_end_of_a_stream_is_known_one_batch_ahead() -> None:
    assert fit(DataLoader(Stream(), batch_size=2), max_epochs=2)[1] == [0, 13]
    assert fit(DataLoader(Stream(), batch_size=2), max_epochs=2, accumulate_grad_batches=2)[1] == [0, 7]
    assert fit(DataLoader(Stream(), batch_size=2), max_steps=5)[1] == [0, 4]


def test_measuring_the_last_step_changes_no_weight() -> None:
    watched, alone = fit(max_epochs=3)[0], fit(max_epochs=3, watched=False)[0]
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_layers_that_are_left_out_are_named_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = GradientMonitor(exclude=["body"], record_path=False)
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(callbacks=[monitor], enable_checkpointing=False, max_steps=2, **quiet).fit(Net(), loader())
    assert "not watched, as include and exclude say: body" in capsys.readouterr().out
