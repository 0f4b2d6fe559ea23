"""GradientMonitor in a real Trainer."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from models import Net, assert_no_hooks, loader, mlp, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from gradwatch import Finding, GradientError, GradientMonitor, GradientWarning, Snapshot
from gradwatch.reporting.record import read_record


def quiet(**options: Any) -> GradientMonitor:
    return GradientMonitor(**{"summary": False, "detectors": [], **options})


def test_measures_the_first_steps_and_then_every_nth(tmp_path: Path) -> None:
    monitor, model = quiet(every_n_steps=10, dense_steps=3), Net(mlp())
    trainer(tmp_path, monitor, max_steps=25).fit(model, loader())
    assert [snapshot.step for snapshot in monitor.history] == [0, 1, 2, 10, 20]
    assert monitor.history[3].trace_step.tolist() == list(range(3, 11))
    assert all(snapshot.total_norm == snapshot.total_norm_after for snapshot in monitor.history)
    assert_no_hooks(model)


class Hooked(Callback):
    """Notes at which steps hooks were there, once the forward pass has run."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.after: list[int] = []

    def on_after_backward(self, trainer: Any, pl_module: LightningModule) -> None:
        if any(module._forward_hooks for module in pl_module.modules()):
            self.steps.append(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        if any(module._forward_hooks for module in pl_module.modules()):
            self.after.append(trainer.global_step)


def test_hooks_exist_only_for_measured_steps(tmp_path: Path) -> None:
    hooked = Hooked()
    trainer(tmp_path, quiet(every_n_steps=10, dense_steps=2), hooked, max_steps=15).fit(Net(mlp()), loader())
    assert hooked.steps == [0, 1, 10]
    assert hooked.after == [1]  # they wait for the next step, which is measured too


def test_total_norm_before_and_after_clipping(tmp_path: Path) -> None:
    monitor = quiet()
    trainer(tmp_path, monitor, gradient_clip_val=0.01, max_steps=5).fit(Net(mlp()), loader())
    for snapshot in monitor.history:
        assert snapshot.total_norm > 0.1
        assert snapshot.total_norm_after == pytest.approx(0.01, rel=1e-3)
        assert snapshot.clip_coefficient == pytest.approx(0.01 / snapshot.total_norm, rel=1e-3)


def test_accumulation_is_one_step(tmp_path: Path) -> None:
    whole, parts = quiet(), quiet()
    trainer(tmp_path, whole, max_steps=3).fit(Net(mlp()), loader(batch=64))
    trainer(tmp_path, parts, max_steps=3, accumulate_grad_batches=4).fit(Net(mlp()), loader(batch=16))
    for one, other in zip(whole.history, parts.history, strict=True):
        assert other.step == one.step
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4, nan_ok=True)
        assert other.grad_output_norm == pytest.approx(one.grad_output_norm, rel=1e-4)
        assert other.calls == {}


def test_total_norm_reaches_other_callbacks(tmp_path: Path) -> None:
    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    stop = EarlyStopping("grad_norm_total", stopping_threshold=1e9, mode="max")
    keep = ModelCheckpoint(tmp_path, monitor="grad_norm_total", filename="{step}-{grad_norm_total:.3f}")
    monitor = quiet()
    t = trainer(tmp_path, monitor, stop, keep, max_epochs=2, max_steps=-1, enable_checkpointing=True)
    t.fit(Validated(mlp()), loader(), loader())
    assert t.callback_metrics["grad_norm_total"].item() == pytest.approx(monitor.history[-1].total_norm, rel=1e-5)
    assert list(tmp_path.glob("*grad_norm_total=*.ckpt"))


def test_tensorboard_and_record(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    trainer(tmp_path, quiet(histogram_every_n_steps=10), logger=logger, max_steps=12).fit(Net(mlp()), loader())
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert [event.step for event in events.Scalars("0 total/1 grad_norm_total")] == list(range(12))
    assert any(tag.startswith("grad_norm/") for tag in tags["scalars"])
    assert any(tag.startswith("gradient_flow/") for tag in tags["images"])
    assert len(tags["histograms"]) == 6
    snapshots, findings = read_record(Path(logger.log_dir) / "gradwatch.jsonl")
    assert [snapshot.step for snapshot in snapshots] == list(range(12))
    assert findings == []


def test_csv_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer(tmp_path, quiet(), logger=logger, max_steps=4).fit(Net(mlp()), loader())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[0]["grad_norm/network.0"]) > 0
    assert float(rows[0]["grad_norm_total"]) > 0


def test_without_a_logger_the_summary_still_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, GradientMonitor(), max_steps=3).fit(Net(mlp()), loader())
    printed = capsys.readouterr().out
    assert "network.0" in printed
    assert "ReLU" in printed
    assert len(read_record(tmp_path / "gradwatch_logs" / "gradwatch.jsonl").snapshots) == 3


def sick() -> Net:
    return Net(mlp(nn.Sigmoid, depth=9), lr=0.01)


def test_warns_once_for_a_finding(tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False, every_n_steps=1)
    with pytest.warns(GradientWarning, match="vanishing") as caught:
        trainer(tmp_path, monitor, max_steps=25).fit(sick(), loader())
    assert len([w for w in caught if issubclass(w.category, GradientWarning)]) == len(monitor.findings) == 1
    assert monitor.findings[0].is_open
    assert monitor.findings[0].layers[0] == "network.0"
    assert monitor.diagnosis()[0].cause == "saturating activation"


def test_stops_cleanly(tmp_path: Path) -> None:
    monitor, model = GradientMonitor(summary=False, on_finding="stop"), sick()
    t = trainer(tmp_path, monitor, max_steps=100)
    with pytest.warns(GradientWarning, match="vanishing"):
        t.fit(model, loader())
    assert t.global_step < 60  # vanishing is kept back for 50 steps, in which the loss may come down
    assert_no_hooks(model)


def test_raises_and_loses_nothing(tmp_path: Path) -> None:
    monitor, model = GradientMonitor(summary=False, on_finding="raise"), sick()
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    with pytest.raises(GradientError, match="vanishing") as error:
        trainer(tmp_path, monitor, logger=logger).fit(model, loader())
    assert error.value.finding == monitor.findings[0]
    snapshots, findings = read_record(Path(logger.log_dir) / "gradwatch.jsonl")
    assert len(snapshots) == len(monitor.history)
    assert [finding.message for finding in findings] == [monitor.findings[0].message]
    assert_no_hooks(model)


def test_calls_a_function(tmp_path: Path) -> None:
    seen: list[Finding] = []
    trainer(tmp_path, GradientMonitor(summary=False, on_finding=seen.append)).fit(sick(), loader())
    assert [finding.kind for finding in seen] == ["vanishing"]


def test_a_function_is_a_detector(tmp_path: Path) -> None:
    def small(snapshot: Snapshot) -> Finding | None:
        if snapshot.total_norm < 1e9:
            return Finding("small", ("all",), snapshot.step, snapshot.total_norm, 1e9, "small")
        return None

    monitor = quiet(detectors=[small], on_finding=lambda finding: None)
    trainer(tmp_path, monitor).fit(Net(mlp()), loader())
    assert [(finding.kind, finding.step) for finding in monitor.findings] == [("small", 0)]


class Poisoned(Net):
    """Its loss is NaN at one step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx == 27 else loss


def test_a_nan_between_measured_steps_is_dated_exactly(tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False, on_finding=lambda finding: None, every_n_steps=10, dense_steps=5)
    trainer(tmp_path, monitor, max_steps=35).fit(Poisoned(mlp()), loader())
    assert [(finding.kind, finding.step) for finding in monitor.findings] == [("nonfinite", 27)]
    assert monitor.findings[0].severity == "error"
    assert {28, 31} & {snapshot.step for snapshot in monitor.history}  # a step after it was measured too


class Broken(Callback):
    """Raises in the middle of a measured step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 4:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_interrupted_fit_leaves_no_hook_and_keeps_its_record(tmp_path: Path, error: BaseException) -> None:
    handler = signal.getsignal(signal.SIGINT)
    model, logger = Net(mlp()), TensorBoardLogger(tmp_path, name="", version="run")
    with pytest.raises(type(error) if isinstance(error, Exception) else SystemExit):
        trainer(tmp_path, quiet(), Broken(error), logger=logger).fit(model, loader())
    signal.signal(signal.SIGINT, handler)
    assert_no_hooks(model)
    assert len(read_record(Path(logger.log_dir) / "gradwatch.jsonl")[0]) == 4


def test_a_step_that_returns_none(tmp_path: Path) -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in (1, 2) else super().training_step(batch, batch_idx)

    monitor, model = quiet(), Skips(mlp())
    trainer(tmp_path, monitor, max_steps=5).fit(model, loader())
    assert [snapshot.step for snapshot in monitor.history] == [0, 3, 4]
    assert_no_hooks(model)


def test_a_model_without_parameters(tmp_path: Path) -> None:
    class Empty(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> None:
            pass

    monitor = quiet()
    trainer(tmp_path, monitor, max_epochs=1, max_steps=-1).fit(Empty(), loader(64))
    assert monitor.history == []


class Gan(LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        real, noise = batch[0], torch.randn(len(batch[0]), 4)
        first, second = self.optimizers()
        for optimizer, fake_label in ((first, 0.0), (second, 1.0)):
            fake = self.generator(noise)
            logits = self.discriminator(torch.cat([real, fake]) if optimizer is first else fake)
            labels = torch.full_like(logits, fake_label)
            labels[: len(labels) - len(noise)] = 1.0
            optimizer.zero_grad()
            self.manual_backward(nn.functional.binary_cross_entropy_with_logits(logits, labels))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.discriminator, self.generator)]


def test_several_optimizers_make_one_snapshot_a_batch(tmp_path: Path) -> None:
    monitor, model = quiet(), Gan()
    trainer(tmp_path, monitor, max_epochs=1, max_steps=-1).fit(model, loader(160))
    assert [snapshot.step for snapshot in monitor.history] == list(range(10))
    assert set(monitor.history[0].params) == {name for name, _ in model.named_parameters()}
    assert "grad_norm" not in monitor.history[0].missing or not any(
        layer.startswith("gen") for layer in monitor.history[0].missing["grad_norm"]
    )
    assert_no_hooks(model)


def test_a_loss_scaler_changes_no_number(tmp_path: Path) -> None:
    plain, scaled = quiet(), quiet()
    trainer(tmp_path, plain, max_steps=3).fit(Net(mlp()), loader())
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer(tmp_path, scaled, max_steps=3, plugins=[precision]).fit(Net(mlp()), loader())
    for one, other in zip(plain.history, scaled.history, strict=True):
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=2e-2, nan_ok=True)
        assert other.grad_output_norm == pytest.approx(one.grad_output_norm, rel=2e-2)
        assert not other.skipped


def test_a_scaler_that_searches_for_its_scale_is_no_finding(tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False)
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**24))
    trainer(tmp_path, monitor, max_steps=20, plugins=[precision]).fit(Net(mlp()), loader())
    assert monitor.history[0].skipped
    assert not monitor.history[-1].skipped
    assert monitor.findings == []


def test_two_fits_and_a_checkpoint(tmp_path: Path) -> None:
    monitor = quiet()
    for _ in range(2):
        trainer(tmp_path, monitor, max_steps=5).fit(Net(mlp()), loader())
        assert [snapshot.step for snapshot in monitor.history] == list(range(5))
    t = trainer(tmp_path, quiet(), max_steps=5)
    t.fit(Net(mlp()), loader())
    t.save_checkpoint(tmp_path / "five.ckpt")
    resumed = quiet(dense_steps=0, every_n_steps=1)
    trainer(tmp_path, resumed, max_steps=8).fit(Net(mlp()), loader(), ckpt_path=tmp_path / "five.ckpt")
    assert [snapshot.step for snapshot in resumed.history] == list(range(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0; expected a whole number of at least 1"),
        ({"dense_steps": -1}, "dense_steps is -1"),
        ({"histogram_every_n_steps": 0}, "histogram_every_n_steps is 0"),
        ({"history_size": 1}, "history_size is 1"),
        ({"on_finding": "explode"}, "on_finding is 'explode'; expected 'warn', 'stop', 'raise'"),
    ],
)
def test_bad_settings_fail_when_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientMonitor(**options)


def test_a_detector_that_is_none_fails_when_it_is_given() -> None:
    with pytest.raises(TypeError, match="'vanishing' is a str; expected something that is called with a Snapshot"):
        GradientMonitor(detectors=["vanishing"])  # type: ignore[list-item]


def test_a_pattern_that_matches_nothing_fails_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'netwrk\.0' matches no layer; the nearest"):
        trainer(tmp_path, quiet(include=["netwrk.0"])).fit(Net(mlp()), loader())
