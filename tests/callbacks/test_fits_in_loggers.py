"""Fits that are shown in loggers: those of the packages themselves, where they are installed, and some that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from models import Net, loader, mlp, trainer

from gradwatch import Finding, GradientMonitor, Snapshot
from gradwatch.reporting.record import read_record

PICTURES = ["1 layers by steps", "2 latest step"]


def finds_small(snapshot: Snapshot) -> Finding | None:
    """Finds the same kind of problem in two layers, one after the other."""
    layer = {1: "network.0", 6: "network.2"}.get(snapshot.step)
    return (layer and Finding("small", (layer,), snapshot.step, 0.1, 1.0, "the gradient is small.", "error")) or None


def watch(folder: Path, logger: Any, steps: int = 12, **options: Any) -> GradientMonitor:
    known = {"detectors": [finds_small], "on_finding": lambda finding: None, "summary": False, "report": True}
    monitor = GradientMonitor(1, **{**known, **options})
    trainer(folder, monitor, max_steps=steps, logger=logger).fit(Net(mlp()), loader())
    return monitor


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A run of Weights & Biases that is kept on this machine."""
    wandb = pytest.importorskip("wandb")
    for place in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{place}", str(tmp_path / f"wandb_{place.lower()}"))
        (tmp_path / f"wandb_{place.lower()}").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()  # it reads the environment once, maybe for an earlier test
    yield wandb.init(project="p", dir=tmp_path)
    wandb.finish()
    wandb.teardown()


def without_block_headers(log: bytes) -> bytes:
    """Return the records of a Weights & Biases log in one piece: its blocks of 32 KB may cut any text in two.

    The format is that of LevelDB's log: 7 bytes of the file, then parts with a checksum, a length and a kind.
    """
    parts, place, block = [], 7, 1 << 15
    while place + 7 <= len(log):
        left = block - place % block
        length = int.from_bytes(log[place + 4 : place + 6], "little")
        parts.append(log[place + 7 : place + 7 + length] if left > 7 else b"")
        place += 7 + length if left > 7 else left
    return b"".join(parts)


def test_weights_and_biases(wandb_run: Any, tmp_path: Path) -> None:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    log = Path(wandb_run.dir).parent
    monitor = watch(tmp_path, WandbLogger(project="p", save_dir=tmp_path, experiment=wandb_run))
    summary, name = dict(wandb_run.summary), wandb_run.id
    wandb.finish()
    assert monitor.out_of_service == []
    media = log / "files" / "media"
    shown = sorted(path.name.rpartition("_")[0].rpartition("_")[0] for path in media.rglob("*.png"))
    assert shown == PICTURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in media.rglob("*.png"))
    tables = [json.loads(path.read_text()) for path in media.rglob("*.table.json")]
    assert all(table["columns"][0] == "kind" for table in tables)
    assert max(len(table["data"]) for table in tables) == len(monitor.findings) > 1
    report = tmp_path / "p" / name / "gradwatch.html"
    (page,) = media.rglob("*.html")
    assert page.read_text() == report.read_text()
    assert summary["gradwatch/verdict"] == "Nothing is wrong now; 2 findings have passed: small."
    assert summary["grad_norm_total"] > 0
    (written,) = log.glob("*.wandb")
    for _ in range(100):  # another process writes it, and may be late on a busy machine
        content = without_block_headers(written.read_bytes())
        if f"gradwatch-{name}".encode() in content:
            break
        time.sleep(0.1)
    assert content.count(b"gradwatch: small at step") == 1  # one alert for a kind
    assert f"gradwatch-{name}".encode() in content


def test_mlflow_with_a_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # recent versions prefer a database
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    logger = MLFlowLogger("fits", tracking_uri=f"file:{tmp_path}/store")
    monitor = watch(tmp_path, logger)
    assert monitor.out_of_service == []
    client = tracking.MlflowClient(f"file:{tmp_path}/store")
    run = client.get_run(logger.run_id)
    assert run.data.tags["gradwatch.verdict"] == "Nothing is wrong now; 2 findings have passed: small."
    assert run.data.metrics["grad_norm_total"] > 0
    assert len(client.get_metric_history(logger.run_id, "grad_norm/network.0")) == 12
    folder = tmp_path / "store" / str(logger.experiment_id) / str(logger.run_id)
    assert len(read_record(folder / "gradwatch.jsonl").snapshots) == 12
    kept = folder / "artifacts" / "gradwatch"
    assert "| small | 1 | 4 |" in (kept / "findings.md").read_text()
    assert (kept / "gradwatch.html").read_text() == (folder / "gradwatch.html").read_text()
    images = sorted((folder / "artifacts" / "images").glob("*.png"))
    assert [path.name.split("+step+11")[0] for path in images] == [f"gradient_flow~{name}" for name in PICTURES]


class Failing(Logger):
    """Raises whenever its experiment is written to, but not for numbers, unless asked for."""

    def __init__(self, fails_for_numbers: bool = False) -> None:
        super().__init__()
        self.fails_for_numbers = fails_for_numbers
        self.steps: list[int] = []

    name = version = "failing"
    run_id = "7f"

    @property
    def experiment(self) -> Any:
        raise ConnectionError("the server is gone")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "grad_norm_total" in metrics:
            self.steps.append(step or 0)
            if self.fails_for_numbers:
                raise ConnectionError("the server is gone")

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class WandbLogger(Failing):
    def log_table(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("the server is gone")

    log_image = log_table


class MLFlowLogger(Failing):
    pass


class CometLogger(Failing):
    pass


class LitLogger(Failing):
    pass


def bare_weights(folder: Path) -> list[torch.Tensor]:
    model = Net(mlp())
    trainer(folder, max_steps=12).fit(model, loader())
    return [param.detach() for param in model.parameters()]


def watched(folder: Path, logger: Failing, **options: Any) -> tuple[GradientMonitor, list[torch.Tensor]]:
    known: dict[str, Any] = {"detectors": [finds_small], "on_finding": lambda finding: None, "on_error": "warn"}
    monitor, model = GradientMonitor(1, summary=False, **{**known, **options}), Net(mlp())
    # Lightning itself asks each logger for its experiment at the start of a fit.
    beside = [CSVLogger(folder), logger]
    fits = trainer(folder, monitor, max_steps=12, logger=beside)
    fits.fit(model, loader())
    return monitor, [param.detach() for param in model.parameters()]


@pytest.fixture
def asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.trainer import call

    original = call._call_setup_hook

    def without_experiments(owner: Trainer) -> None:
        loggers, owner._loggers = owner.loggers, []
        try:
            original(owner)
        finally:
            owner._loggers = loggers

    monkeypatch.setattr("lightning.pytorch.trainer.call._call_setup_hook", without_experiments)


@pytest.mark.usefixtures("asked_once")
@pytest.mark.parametrize("kind", [WandbLogger, MLFlowLogger, CometLogger, LitLogger])
def test_what_a_logger_does_not_take_costs_one_warning_and_nothing_else(kind: type[Failing], tmp_path: Path) -> None:
    logger = kind()
    with pytest.warns(UserWarning, match="the server is gone|No module named") as caught:
        monitor, weights = watched(tmp_path, logger, report=True)
    parts = [failure.part for failure in monitor.out_of_service]
    assert len(parts) == len({*parts}) == len([w for w in caught if "not watched" in str(w.message)])
    assert {part.partition(" for ")[0] for part in parts} >= {"findings", "pictures", "verdict"}
    assert logger.steps == list(range(12))  # the numbers go on
    assert all(map(torch.equal, weights, bare_weights(tmp_path)))
    assert (tmp_path / "lightning_logs/version_0/gradwatch.html").is_file()


@pytest.mark.usefixtures("asked_once")
def test_a_logger_that_takes_no_numbers_is_left_alone(tmp_path: Path) -> None:
    logger = CometLogger(fails_for_numbers=True)
    with pytest.warns(UserWarning, match="logger 1 CometLogger: not watched since step 0") as caught:
        monitor, _ = watched(tmp_path, logger)
    assert logger.steps == [0]
    assert len(monitor.out_of_service) == len([w for w in caught if "not watched" in str(w.message)]) == 1


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    monitor = watch(tmp_path, TensorBoardLogger(tmp_path))
    assert len(monitor.history) == 12
    assert not [*tmp_path.rglob("gradwatch*")]


def test_a_resumed_run_sends_no_alert_again(tmp_path: Path) -> None:
    class Alerted(Logger):
        name = version = run_id = "alerted"

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    Alerted.__name__ = "CometLogger"
    sent: list[str] = []

    class Experiment:
        def send_notification(self, title: str, *_: Any) -> None:
            sent.append(title)

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    Alerted.experiment = Experiment()  # type: ignore[attr-defined]
    for steps in (6, 12):
        monitor = GradientMonitor(1, detectors=[finds_small], on_finding=lambda finding: None, summary=False)
        fits = trainer(tmp_path, monitor, max_steps=steps, logger=Alerted())
        fits.fit(Net(mlp()), loader(), ckpt_path=tmp_path / "six.ckpt" if steps == 12 else None)
        fits.save_checkpoint(tmp_path / "six.ckpt")
    assert sent == ["gradwatch: small at step 1"]


def test_a_network_of_more_than_a_thousand_layers_is_logged_by_block(tmp_path: Path) -> None:
    layers = [torch.nn.Linear(8, 8) for _ in range(1200)]
    for layer in layers:
        torch.nn.init.eye_(layer.weight)
    logger = CSVLogger(tmp_path)
    known = {"on_finding": lambda finding: None, "summary": False, "columns": ["grad_*"]}
    monitor = GradientMonitor(1, detectors=[finds_small], **known)
    network = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))
    trainer(tmp_path, monitor, max_steps=3, logger=logger).fit(Net(network), loader())
    heads = next(Path(logger.log_dir).glob("metrics.csv")).read_text().split("\n")[0].split(",")
    named = {head.partition("/")[2] for head in heads if head.startswith("grad_norm/")}
    blocks = {f"network.0-1200 {end}" for end in ("median", "lowest", "highest")}
    assert named == blocks | {"network.0"}  # which has a finding
    record = read_record(next(tmp_path.rglob("gradwatch.jsonl")))
    assert len(record.snapshots[-1].layers) == 1201
    assert record.snapshots[-1].missing["weight_norm"] == record.snapshots[-1].layers
