"""The callback that ``gradwatch run`` adds to transformers' Trainer: once, and not beside the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments  # noqa: E402

from gradwatch import autoload  # noqa: E402
from gradwatch.integrations.transformers import GradwatchCallback  # noqa: E402
from gradwatch.reporting.record import read_record  # noqa: E402


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.last(self.first(x).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS])
    monkeypatch.setenv(autoload.ENVIRONMENT, "dense_steps=2,summary=0")
    autoload.watch_transformers()


def train(folder: Path, *callbacks: Any) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(4, generator=generator), "labels": torch.tensor(i % 2)} for i in range(32)]
    args = TrainingArguments(
        str(folder), max_steps=4, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    torch.manual_seed(0)
    trainer = Trainer(Net(), args, train_dataset=data, callbacks=[*callbacks])
    trainer.train()
    return trainer


def watching(trainer: Trainer) -> list[GradwatchCallback]:
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, GradwatchCallback)]


@pytest.mark.usefixtures("added")
def test_each_trainer_has_its_own_and_the_weights_are_those_of_an_unwatched_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [train(tmp_path / name) for name in "ab"]
    assert [len(watching(run)) for run in runs] == [1, 1]
    assert watching(runs[0])[0] is not watching(runs[1])[0]
    for name in "ab":
        assert [each.step for each in read_record(tmp_path / name / "gradwatch.jsonl").snapshots] == [0, 1]
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", transformers.trainer.DEFAULT_CALLBACKS[:1])
    alone = train(tmp_path / "c")
    assert not watching(alone)
    for found, expected in zip(runs[0].model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("added")
def test_it_gives_way_to_a_callback_of_the_users(tmp_path: Path) -> None:
    own = GradwatchCallback(summary=False)
    assert watching(train(tmp_path, own)) == [own]
    assert len(own.history) == 4


def test_a_pattern_that_fits_no_layer_ends_no_training(
    added: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(autoload.ENVIRONMENT, "include=encoder.*")
    transformers.trainer.DEFAULT_CALLBACKS.pop()
    autoload.watch_transformers()
    with pytest.warns(UserWarning, match=r"this training is not watched: .*encoder"):
        trainer = train(tmp_path)
    assert trainer.state.global_step == 4
    assert not watching(trainer)
