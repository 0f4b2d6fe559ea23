"""The same in Fabric as in plain PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from torch import nn

from gradwatch import Watcher, watch
from gradwatch.integrations.fabric import GradwatchCallback
from gradwatch.reporting.record import read_record


def train(use_fabric: bool, steps: int = 8) -> Watcher:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fabric = Fabric(accelerator="cpu", devices=1)
    forward, stepped = fabric.setup(model, optimizer) if use_fabric else (model, optimizer)
    with watch(model) as watcher:
        for _ in range(steps):
            stepped.zero_grad()
            loss = forward(torch.randn(16, 4)).square().mean()
            fabric.backward(loss)
            watcher.read(stepped)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            watcher.step(stepped, loss)
    return watcher


def test_fabric_gives_the_same_snapshots() -> None:
    plain, fabric = train(use_fabric=False), train(use_fabric=True)
    assert fabric.history[0].layers == ("0", "1", "2")
    for one, other in zip(plain.history, fabric.history, strict=True):
        assert other.step == one.step
        assert other.loss == one.loss
        assert other.total_norm == one.total_norm
        assert other.total_norm_after == pytest.approx(0.1, rel=1e-3)
        assert other.grad_output_norm.tolist() == one.grad_output_norm.tolist()


def with_callback(folder: Path, precision: str = "32-true", *, watched: bool = True, **options: object) -> Any:
    torch.manual_seed(0)
    callback = GradwatchCallback(**{"summary": False, "on_error": "raise", **options})
    logger = TensorBoardLogger(folder, name="run")
    fabric = Fabric(accelerator="cpu", precision=precision, callbacks=[callback] if watched else [], loggers=[logger])
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    norms = []
    for batch in range(16):
        is_accumulating = batch % 2 == 0
        with fabric.no_backward_sync(model, enabled=is_accumulating):
            fabric.backward(model(torch.randn(16, 4)).square().mean())
        if not is_accumulating:
            norms.append(float(fabric.clip_gradients(model, optimizer, max_norm=0.1)))
            optimizer.step()
            optimizer.zero_grad()
    fabric.call("on_train_end")
    return callback, norms, [param.detach() for param in model.parameters()], fabric


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_callback_sees_whole_steps_before_the_clip_and_changes_nothing(tmp_path: Path, precision: str) -> None:
    callback, norms, weights, fabric = with_callback(tmp_path / "a", precision)
    _, _, bare, _ = with_callback(tmp_path / "b", precision, watched=False)
    assert all(map(torch.equal, weights, bare))
    assert [snapshot.step for snapshot in callback.history] == list(range(8))
    for snapshot, norm in zip(callback.history, norms, strict=True):
        assert snapshot.total_norm == pytest.approx(norm, rel=1e-6)
        assert snapshot.total_norm_after == pytest.approx(min(norm, 0.1), rel=1e-3)
        assert float(snapshot.loss) > 0
    assert callback.findings == []
    assert "backward" not in vars(fabric)


def test_the_callback_writes_to_the_loggers_of_fabric(tmp_path: Path) -> None:
    callback, *_ = with_callback(tmp_path, report=True)
    (record,) = tmp_path.rglob("gradwatch.jsonl")
    assert len(read_record(record).snapshots) == 8
    assert record.with_suffix(".html").is_file()
    assert list(record.parent.glob("events*"))
    assert callback.out_of_service == []


def test_a_second_model_is_not_watched_and_that_is_said(tmp_path: Path) -> None:
    callback = GradwatchCallback(summary=False, record_path=False)
    fabric = Fabric(accelerator="cpu", callbacks=[callback])
    fabric.setup(nn.Linear(2, 1))
    with pytest.warns(UserWarning, match="one model is watched already, so Bilinear is not"):
        other, optimizer = fabric.setup(net := nn.Bilinear(2, 2, 1), torch.optim.SGD(net.parameters(), lr=0.1))
    fabric.backward(other(torch.ones(3, 2), torch.ones(3, 2)).sum())
    optimizer.step()
    callback.close()
    assert callback.steps == 0


def test_a_program_that_just_ends_gets_its_summary(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import torch\n"
        "from lightning.fabric import Fabric\n"
        "from gradwatch.integrations.fabric import GradwatchCallback\n"
        "fabric = Fabric(accelerator='cpu', callbacks=[GradwatchCallback()])\n"
        "net = torch.nn.Linear(2, 1)\n"
        "model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))\n"
        "for _ in range(3):\n"
        "    fabric.backward(model(torch.ones(4, 2)).square().mean())\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "gradients at step 2" in done.stdout
    assert len(read_record(tmp_path / "gradwatch_logs" / "gradwatch.jsonl").snapshots) == 3


@pytest.mark.parametrize("name", ["find_ranks", "Losses", "ForwardAgain", "parameters_of", "settings_of_run"])
@pytest.mark.filterwarnings("ignore:gradwatch")
def test_a_fault_of_the_watching_neither_ends_nor_changes_the_loop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError("a fault")

    _, _, bare, _ = with_callback(tmp_path / "a", watched=False)
    with monkeypatch.context() as patched:
        patched.setattr(f"gradwatch.integrations.fabric.{name}", fails)
        _, norms, weights, _ = with_callback(tmp_path / "b", on_error="warn")
    assert all(map(torch.equal, weights, bare))
    assert len(norms) == 8
