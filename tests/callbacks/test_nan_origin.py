"""The operation and the line that make NaN are named, and the search changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from models import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from gradwatch import GradientMonitor, watch
from gradwatch.detectors import NonFinite
from gradwatch.preflight.verdict import check_training
from gradwatch.records import Snapshot
from gradwatch.snapshot import Origin

BAD = 7


class Rooted(LightningModule):
    def __init__(self, way: str = "backward") -> None:
        super().__init__()
        self.way = way
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 4))
        self.logged = 0

    def root(self, x: Tensor) -> Tensor:
        return (self.net(x).square() * x.square()).sum(1).sqrt()

    def ratio(self, x: Tensor) -> Tensor:
        return self.net(x).sum(1) / x.abs().sum(1) * x.abs().sum(1)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        if self.way == "crash":
            assert batch.any(), "all zero"
        self.log("seen", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        return (self.root(batch) if self.way == "backward" else self.ratio(batch)).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(way: str, callbacks: list[Any], bad: int = BAD, steps: int = 12) -> tuple[Rooted, Trainer]:
    torch.manual_seed(0)
    return train(Rooted(way), callbacks, bad, steps)


def fitted(module: Any, callbacks: list[Any]) -> Any:
    return train(module, callbacks)[0]


def train(module: Any, callbacks: list[Any], bad: int = BAD, steps: int = 12) -> tuple[Any, Trainer]:
    x = torch.randn(steps, 8, 4)
    if bad < steps:
        x[bad] = 0.0
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(x), batch_size=None))
    return module, trainer


@pytest.mark.parametrize(("way", "words"), [("backward", ("`sqrt`", "in root")), ("forward", ("`div`", "in ratio"))])
def test_names_operation_function_and_step_of_an_unmeasured_step(way: str, words: tuple[str, str]) -> None:
    monitor = GradientMonitor(
        dense_steps=2, on_finding=lambda _: None, summary=False, record_path=False, on_error="raise"
    )
    fit(way, [monitor])
    (finding,) = monitor.findings
    assert finding.step == BAD
    assert all(word in finding.message for word in (*words, f"the {way} pass", "test_nan_origin.py:"))
    first = monitor.diagnosis()[0]
    assert first.cause == "unguarded operation"
    assert first.evidence == finding.message


def test_the_search_changes_nothing() -> None:
    bare, trainer = fit("backward", [])
    watched, other = fit("backward", [GradientMonitor(on_finding=lambda _: None, summary=False, record_path=False)])
    for mine, theirs in zip(bare.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))
    assert trainer.callback_metrics["seen"] == other.callback_metrics["seen"] == 12


SEEN: list[int] = []


class LeavesTraces(Rooted):
    """Counts outside of itself, writes to open and to new files, draws from a loader, and has a metric."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.metric = MeanMetric()
        self.others = iter(DataLoader(torch.arange(100.0), shuffle=True))
        self.register_buffer("calls", torch.zeros(1))

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        SEEN.append(len(SEEN))
        self.calls += 1
        with open(self.folder / "steps.txt", "a") as steps:
            steps.write(f"{len(SEEN)} {next(self.others).item()} {random.random()}\n")
        return self.trace(batch)

    def trace(self, batch: Tensor) -> Tensor:
        loss = self.root(batch).mean()
        self.metric.update(loss.detach())
        return loss


class LeavesTracesInMemory(LeavesTraces):
    def training_step(self, batch: Tensor, _: int) -> Tensor:
        SEEN.append(len(SEEN))
        self.calls += next(self.others)
        print("step", len(SEEN))
        return self.trace(batch)


@pytest.mark.parametrize(("kind", "is_named"), [(LeavesTraces, False), (LeavesTracesInMemory, True)])
def test_the_search_leaves_no_trace(
    kind: type[LeavesTraces], is_named: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A step that opens a file can't be computed again; one that counts and draws can."""
    ends: list[Any] = []
    monitor = GradientMonitor(on_finding=lambda _: None, summary=False, record_path=False, on_error="raise")
    for callbacks in ([], [monitor]):
        SEEN.clear()
        folder = tmp_path / str(len(callbacks))
        folder.mkdir()
        random.seed(0), torch.manual_seed(0)
        module = fitted(kind(folder), callbacks)
        files = {path.name: path.read_text() for path in folder.iterdir()}
        numbers = [len(SEEN), module.calls.item(), str(module.metric.compute()), next(module.others).item()]
        ends.append([*numbers, random.random(), torch.rand(1).item(), files, capfd.readouterr().out])
    assert ends[0] == ends[1]
    (finding,) = monitor.findings  # that the weights are NaN later is no other one
    assert finding.step == BAD
    assert ("`sqrt`" in finding.message) == is_named


def test_a_batch_that_the_step_changed_is_not_looked_at_again() -> None:
    class InPlace(Rooted):
        def training_step(self, batch: Tensor, _: int) -> Tensor:
            return self.net(batch.div_(batch.std())).square().mean()

    monitor = GradientMonitor(on_finding=lambda _: None, summary=False, record_path=False, on_error="raise")
    fitted(InPlace(), [monitor])
    assert monitor.findings[0].case != "batch"


def test_without_a_fork_nan_is_dated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwatch.pipeline.origin_search.can_fork", lambda: False)
    monitor = GradientMonitor(
        dense_steps=2, on_finding=lambda _: None, summary=False, record_path=False, on_error="raise"
    )
    fit("forward", [monitor])
    assert monitor.findings[0].step == BAD
    assert "`" not in monitor.findings[0].message


class Subclass(nn.Parameter):
    pass


class Odd(nn.Module):
    """Parameters that can't all be summed, among them those from which gradients are sampled."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "lazy":
            self.unused = nn.LazyLinear(3)
        elif kind == "complex":
            self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex64))
        elif kind == "sparse":
            self.weight = nn.Embedding(5, 4, sparse=True)
        elif kind == "half":
            self.weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        elif kind == "integer":
            self.weight = nn.Parameter(torch.ones(4).int(), requires_grad=False)
        elif kind == "subclass":
            self.weight = Subclass(torch.ones(4))
        self.kind, self.last = kind, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "complex":
            x = (x * self.weight).real
        elif self.kind == "sparse":
            x = x + self.weight(torch.arange(4)).sum(0)
        elif self.kind in ("half", "subclass"):
            x = x * self.weight
        return self.last(x)


@pytest.mark.parametrize("kind", ["lazy", "complex", "sparse", "half", "integer", "subclass"])
def test_odd_parameters(kind: str) -> None:
    module = Rooted()
    module.net = Odd(kind)
    monitor = GradientMonitor(on_finding=lambda _: None, summary=False, record_path=False)
    fitted(module, [monitor])
    assert not monitor._watcher.out_of_service
    assert "`sqrt`" in monitor.findings[0].message


def test_a_sound_run_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwatch.pipeline.origin_search.find_origin", lambda *_: pytest.fail("searched"))
    monitor = GradientMonitor(summary=False, record_path=False, on_error="raise")
    fit("backward", [monitor], bad=99)
    assert not monitor.findings


def test_a_crash_is_placed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="all zero"):
        fit("crash", [GradientMonitor(record_path=False)])
    assert "in training_step" in " ".join(capsys.readouterr().out.split())


def test_a_check_places_a_crash() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    run = check_training(
        nn.Sequential(nn.Linear(2, 2), Fails()), (torch.ones(4, 2), torch.ones(4, 2)), loss=nn.MSELoss()
    )
    assert "layer 1" in run.trouble
    assert "in forward" in run.trouble


def test_a_loop_of_your_own_names_it_too() -> None:
    torch.manual_seed(0)
    model = Rooted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, dense_steps=1, on_finding=lambda _: None) as watcher:
        for step in range(6):
            x = torch.randn(8, 4) * (step != 3)
            optimizer.zero_grad()
            loss = model.root(x).mean()
            loss.backward()
            watcher.step(optimizer, loss.detach(), again=lambda x=x: model.root(x).mean())
    assert watcher.findings[0].step == 3
    assert "`sqrt`" in watcher.findings[0].message


def test_weights_that_were_nan_are_dated() -> None:
    losses = [1.0] * 51 + [float("inf")] * 50
    snapshot = Snapshot(
        400, ("a",), params=("a.weight",), param_weight_norm=[float("inf")], output_rms=[float("inf")],
        trace_step=range(300, 401), trace_loss=losses,
    )  # fmt: skip
    (finding,) = NonFinite()(snapshot)
    assert (finding.layers, finding.step, finding.case) == (("loss",), 351, "weights")
    assert "lies between 350 and 351" in finding.message


def test_an_origin_comes_back_from_a_record() -> None:
    snapshot = Snapshot(3, ("a",), origin=Origin(2, "operation", "log", "forward", "a", "m.py:3", "f", "0 to 1"))
    assert Snapshot.from_dict(snapshot.to_dict()).origin == snapshot.origin


class Keeps(LightningModule):
    """Multiplies its loss by a number that it keeps outside of parameters and buffers, and that turns NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = nn.Linear(4, 1), [torch.ones(())]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 5:
            self.kept[0] = torch.full((), float("nan"))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch[0]).square().mean() * self.kept[0]
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_batch_of_finite_numbers_is_not_blamed_for_a_number_that_was_kept(tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False, record_path=False, on_finding=lambda finding: None)
    loader = DataLoader(TensorDataset(torch.randn(80, 4)), batch_size=8)
    trainer(tmp_path, monitor, max_epochs=1).fit(Keeps(), loader)
    assert [finding.kind for finding in monitor.findings] == ["nonfinite"]
    assert monitor.findings[0].case != "batch"
