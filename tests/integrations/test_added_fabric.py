"""The callback that the environment adds to Lightning's Fabric: once, and not beside the user's."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from gradwatch import autoload
from gradwatch.integrations.fabric import AddedCallback, GradwatchCallback
from gradwatch.reporting.record import read_record

GROUP = "lightning.fabric.callbacks_factory"
pytestmark = pytest.mark.skipif(
    not any(point.name == "gradwatch" for point in entry_points(group=GROUP)),
    reason=f"the installed gradwatch has no entry point {GROUP}: install this checkout, also an editable one, anew",
)
RECORD = "gradwatch_logs/gradwatch.jsonl"


@pytest.fixture(autouse=True)
def switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(autoload.ENVIRONMENT, "dense_steps=2")
    monkeypatch.chdir(tmp_path)
    yield
    if AddedCallback._latest is not None:
        AddedCallback._latest.close()


def train(steps: int = 4, **options: Any) -> tuple[Fabric, nn.Module]:
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    stepped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(steps):
        optimizer.zero_grad()
        fabric.backward(stepped(torch.randn(16, 4)).square().mean())
        optimizer.step()
    return fabric, model


def watching(fabric: Fabric) -> list[GradwatchCallback]:
    return [each for each in fabric._callbacks if isinstance(each, GradwatchCallback) and each.history]


def test_a_loop_is_watched_and_the_weights_are_those_of_an_unwatched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric, model = train()
    fabric.call("on_train_end")
    assert [each.step for each in watching(fabric)[0].history] == [0, 1]
    assert [each.step for each in read_record(tmp_path / RECORD).snapshots] == [0, 1]
    monkeypatch.delenv(autoload.ENVIRONMENT)
    alone, other = train()
    assert not watching(alone)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_summary_of_a_loop_is_printed_when_the_next_begins(capsys: pytest.CaptureFixture[str]) -> None:
    train()
    gc.collect()
    assert "gradwatch: gradients" not in capsys.readouterr().out
    train()
    assert capsys.readouterr().out.count("gradwatch: gradients at step 1") == 1


def test_it_gives_way_to_a_callback_of_the_users() -> None:
    own = GradwatchCallback(summary=False, record_path=False)
    fabric, _ = train(callbacks=[own])
    assert watching(fabric) == [own]
    own.close()


def test_two_fabrics_may_share_a_list_of_callbacks() -> None:
    """Fabric adds to the list that it is given: the second one gets what was added to the first."""
    shared: list[Any] = []
    for count in (1, 2):
        fabric, _ = train(callbacks=shared)
        assert [len(each.history) for each in watching(fabric)] == [2] * count


def test_a_pattern_that_fits_no_layer_ends_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autoload.ENVIRONMENT, "include=encoder.*")
    with pytest.warns(UserWarning, match=r"this model is not watched: .*encoder"):
        fabric, _ = train()
    assert not watching(fabric)


def test_a_script_that_nobody_changed_is_watched(tmp_path: Path) -> None:
    code = """
        import torch
        from lightning.fabric import Fabric

        def main():
            fabric = Fabric(accelerator="cpu", devices=1)
            model = torch.nn.Linear(4, 1)
            model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
            for _ in range(3):
                optimizer.zero_grad()
                fabric.backward(model(torch.randn(16, 4)).square().mean())
                optimizer.step()

        main()
    """
    (tmp_path / "train.py").write_text(code.replace("\n        ", "\n"))
    command = [sys.executable, "train.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert "gradwatch: gradients at step 1" in ran.stdout
    assert [each.step for each in read_record(tmp_path / RECORD).snapshots] == [0, 1]
