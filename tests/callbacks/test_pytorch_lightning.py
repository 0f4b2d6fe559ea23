"""Projects that import pytorch_lightning, whose classes have the names of lightning.pytorch's and are others."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from models import loader, mlp
from torch import Tensor, nn

from gradwatch import BackwardTransform, GradientMonitor, GradientTransform, LayerwiseTraining, Stage
from gradwatch.callbacks import releases_module
from gradwatch.callbacks.trainer_checks import has_class_named
from gradwatch.reporting.record import read_record
from gradwatch.transforms import ClipByGlobalNorm, NormalizeByNorm, Standardize, When

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


def fit(package: str, folder: Path, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> Any:
    """The same fit with the classes of either package; the Trainer after it."""
    pl = pytest.importorskip(package, reason=f"{package} is not installed")

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = mlp(nn.Tanh)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "default_root_dir": folder, **quiet}
    trainer = pl.Trainer(callbacks=list(callbacks), **{**settings, **options})
    trainer.fit(Net(), loader(160), ckpt_path=ckpt_path)
    return trainer


def both(folder: Path, *make: Any, **options: Any) -> list[tuple[Any, list[Any]]]:
    runs = []
    for package in PACKAGES:
        callbacks = [one() for one in make]
        runs.append((fit(package, folder / package, *callbacks, **options), callbacks))
    return runs


def weights(trainer: Any) -> list[Tensor]:
    return list(trainer.lightning_module.state_dict().values())


def quiet_monitor(**options: Any) -> GradientMonitor:
    return GradientMonitor(summary=False, **options)


def test_the_monitor_measures_the_same(tmp_path: Path) -> None:
    (first, (one,)), (second, (other,)) = both(tmp_path, quiet_monitor)
    assert [snapshot.step for snapshot in one.history] == list(range(20))
    for a, b in zip(one.history, other.history, strict=True):
        np.testing.assert_array_equal(a.grad_output_norm, b.grad_output_norm)
    assert first.callback_metrics["grad_norm_total"] == second.callback_metrics["grad_norm_total"]


def test_transforms_and_stages_do_the_same(tmp_path: Path) -> None:
    def transform() -> GradientTransform:
        return GradientTransform([ClipByGlobalNorm(0.1), When("exploding", NormalizeByNorm())])

    def backward() -> BackwardTransform:
        return BackwardTransform(Standardize(), layers=["network.2"])

    def stages() -> LayerwiseTraining:
        return LayerwiseTraining([Stage(["network.4"]), Stage(["*"])])

    (first, _), (second, (_, edit, *_)) = both(tmp_path, quiet_monitor, transform, backward, stages)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert edit.state_dict()["0"]["steps"] == 20
    assert all(param.requires_grad for param in second.lightning_module.parameters())


@pytest.mark.parametrize("package", PACKAGES)
def test_tensorboard_gets_all_that_it_gets(tmp_path: Path, package: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = pytest.importorskip(f"{package}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path, name="", version="run")
    fit(package, tmp_path, quiet_monitor(), logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0})
    events.Reload()
    assert {tag.split("/")[0] for tag in events.Tags()["images"]} >= {"gradient_flow"}
    assert any(tag.startswith("grad_norm/00 network.0") for tag in events.Tags()["scalars"])
    snapshots, _ = read_record(Path(logger.log_dir) / "gradwatch.jsonl")
    assert len(snapshots) == 20


@pytest.mark.parametrize("package", PACKAGES)
def test_a_checkpoint_is_gone_on_with(tmp_path: Path, package: str) -> None:
    fit(package, tmp_path, quiet_monitor(), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = quiet_monitor()
    fit(package, tmp_path, resumed, ckpt_path=tmp_path / "one.ckpt")
    assert [snapshot.step for snapshot in resumed.history] == list(range(20))


def test_what_is_refused_is_refused_there_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gradient_clip_val=1\.0.*would both clip"):
        fit("pytorch_lightning", tmp_path, GradientTransform(ClipByGlobalNorm(1.0)), gradient_clip_val=1.0)


def test_callbacks_are_of_its_own_class_too_for_its_command_line() -> None:
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    # As gradwatch imports it in a project that has imported pytorch_lightning before, as LightningCLI's YAML does.
    base = runpy.run_path(releases_module.__file__)["CallbackOfBothPackages"]
    assert issubclass(base, pl.Callback)
    assert issubclass(base, Callback)


def test_sharded_strategies_are_known_by_their_names() -> None:
    strategies = pytest.importorskip("pytorch_lightning.strategies", reason="pytorch_lightning is not installed")
    assert has_class_named(strategies.FSDPStrategy(), "FSDPStrategy")
    assert not has_class_named(strategies.DDPStrategy(), "FSDPStrategy")
