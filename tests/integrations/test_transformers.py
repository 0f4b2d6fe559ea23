"""The callback for Hugging Face's Trainer: right numbers, nothing changed, nothing left behind."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from hugging_face import LENGTH, Texts, gpt2, logged, same_weights, settings, train
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from gradwatch import GradientError, GradientMonitor
from gradwatch.integrations.transformers import GradwatchCallback
from gradwatch.reporting.record import read_record


def quiet(**options: Any) -> GradwatchCallback:
    return GradwatchCallback(summary=False, **options)


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 3}, {"max_grad_norm": 0.0}, {"bf16": True}])
def test_weights_are_those_of_an_unwatched_training_and_norms_those_of_the_trainer(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    callback = quiet(on_error="raise")
    bare, watched = train(tmp_path / "a", **more), train(tmp_path / "b", callback, **more)
    assert same_weights(bare, watched)
    assert callback.steps == 30
    assert [snapshot.step for snapshot in callback.history] == list(range(20))
    bound = more.get("max_grad_norm", 1.0) or math.inf
    norms, losses = logged(watched), logged(watched, "loss")
    for snapshot in callback.history:
        assert snapshot.total_norm == pytest.approx(norms[snapshot.step], rel=1e-6 if not more.get("bf16") else 1e-5)
        assert float(snapshot.loss) == pytest.approx(losses[snapshot.step], rel=1e-5)
        assert snapshot.total_norm_after == pytest.approx(min(snapshot.total_norm, bound), rel=1e-5)
    assert callback.findings == []
    assert callback.out_of_service == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.model.modules())
    assert "backward" not in vars(watched.accelerator)


def test_layers_have_the_norms_before_the_clip(tmp_path: Path) -> None:
    callback = quiet()
    train(tmp_path, callback, max_steps=5, max_grad_norm=0.1)
    for snapshot in callback.history:
        assert math.sqrt((snapshot.param_grad_norm**2).sum()) == pytest.approx(snapshot.total_norm, rel=1e-4)
        assert snapshot.clip_max_norm == 0.1


def test_a_resumed_training_goes_on_and_ends_with_the_same_memory(tmp_path: Path) -> None:
    whole = quiet()
    first = train(tmp_path, whole, max_steps=20, save_strategy="steps", save_steps=10)
    resumed = quiet()
    second = train(tmp_path, resumed, max_steps=20, resume=str(tmp_path / "checkpoint-10"))
    assert same_weights(first, second)
    assert resumed.steps == 20
    assert [s.step for s in resumed.history] == [s.step for s in whole.history]
    assert [s.total_norm for s in resumed.history] == pytest.approx([s.total_norm for s in whole.history], rel=1e-6)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["gradwatch.jsonl"]
    assert {snapshot.step for snapshot in read_record(tmp_path / "gradwatch.jsonl").snapshots} == set(range(20))


def test_it_finds_what_a_lightning_fit_of_the_same_program_finds(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    def sick() -> nn.Module:
        model = gpt2(layers=4)
        with torch.no_grad():
            for block in model.transformer.h:
                block.mlp.c_fc.weight.mul_(1e4)
                block.mlp.c_fc.weight[0, 0] = math.inf
        return model

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = sick()

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    callback, monitor = quiet(), GradientMonitor(summary=False, record_path=False)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        train(tmp_path, callback, model=sick(), max_steps=10, lr_scheduler_type="constant")
    loader = torch.utils.data.DataLoader(Texts(), batch_size=8)
    quiet_trainer = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=10, callbacks=[monitor], gradient_clip_val=1.0, accelerator="cpu", **quiet_trainer)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        trainer.fit(Module(), loader)
    assert [found.kind for found in callback.findings] == [found.kind for found in monitor.findings]
    names = [tuple(layer.removeprefix("model.") for layer in found.layers) for found in monitor.findings]
    assert [found.layers for found in callback.findings] == names
    assert [d.cause for d in callback.diagnosis()] == [d.cause for d in monitor.diagnosis()]


def test_labels_that_are_all_ignored_are_named(tmp_path: Path) -> None:
    callback = quiet()
    with pytest.warns(UserWarning, match="ignored labels"):
        train(tmp_path, callback, data=Texts(ignored=True), max_steps=8)
    assert callback.diagnosis()[0].cause == "ignored labels"
    assert "All labels are -100" in callback.diagnosis()[0].evidence
    record = read_record(tmp_path / "gradwatch.jsonl")
    assert {snapshot.told for snapshot in record.snapshots} == {"ignored labels"}


def test_on_finding_stop_ends_the_training_cleanly_and_raise_raises(tmp_path: Path) -> None:
    stopping = quiet(on_finding="stop")
    with pytest.warns(UserWarning, match="ignored labels"):
        trainer = train(tmp_path / "a", stopping, data=Texts(ignored=True))
    assert trainer.state.global_step < 5
    with pytest.raises(GradientError, match="NaN or Inf"):
        train(tmp_path / "b", quiet(on_finding="raise"), data=Texts(ignored=True))


def test_an_error_of_the_training_leaves_it_to_close(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("out of disk")

    callback, model = quiet(), gpt2()
    with pytest.raises(RuntimeError, match="out of disk"):
        train(tmp_path, callback, Fails(), model=model)
    callback.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    train(tmp_path / "again", callback, model=model, max_steps=3)
    assert callback.steps == 3


def test_copies_hold_what_was_recorded(tmp_path: Path) -> None:
    callback = quiet()
    train(tmp_path, callback, max_steps=3)
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert [s.total_norm for s in other.history] == [s.total_norm for s in callback.history]


def test_the_class_may_be_given_in_place_of_an_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, GradwatchCallback, max_steps=3)
    assert "transformer.h.0.attn.c_attn" in capsys.readouterr().out


def test_a_pattern_without_a_layer_fails_when_the_training_begins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"decoder"):
        train(tmp_path, quiet(include=["decoder.*"]))


def test_tensorboard_shows_it_in_the_folder_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    callback = quiet(report=True)
    train(tmp_path, callback, report_to=["tensorboard"], max_steps=5)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "train/loss" in tags
    assert "0 total/1 grad_norm_total" in tags
    assert any(tag.startswith("grad_norm/") and tag.endswith("c_attn") for tag in tags)
    assert any("verdict" in tag for tag in events.Tags()["tensors"])
    assert callback.out_of_service == []
    assert "GPT2LMHeadModel" in (tmp_path / "gradwatch.html").read_text()
    assert read_record(tmp_path / "gradwatch.jsonl").settings["gradient clip"] == "1.0 by norm"


def test_weights_and_biases_and_others_get_it_through_the_trainers_reporting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads the environment once, maybe for an earlier test
    callback = quiet()
    train(tmp_path, callback, report_to=["wandb"], max_steps=4)
    summary = dict(wandb.run.summary)
    wandb.finish()
    wandb.teardown()
    assert summary["grad_norm_total"] == pytest.approx(callback.history[-1].total_norm)
    assert summary["train/global_step"] >= 3
    assert summary["gradwatch/verdict"].startswith("No fault found so far")
    assert callback.out_of_service == []


_TWO = """
import json
import sys
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
from hugging_face import gpt2, logged, train
from gradwatch.integrations.transformers import GradwatchCallback
callback = GradwatchCallback(summary=False, on_error="raise")
more = dict(max_steps=6, ddp_backend="gloo", per_device_train_batch_size=4)
trainer = train(Path({folder!r}), callback, model=gpt2(dropout=0.0), **more)
norms = logged(trainer)
for snapshot in callback.history:
    assert abs(snapshot.total_norm - norms[snapshot.step]) < 1e-5 * norms[snapshot.step], (snapshot, norms)
assert len(callback.history) == 6 and not callback.findings, callback.findings
rank = torch.distributed.get_rank()
Path({folder!r}, f"rank{{rank}}.json").write_text(json.dumps([snapshot.total_norm for snapshot in callback.history]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_norms_of_one(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    here = Path(__file__).parent
    script.write_text(_TWO.format(paths=[str(here), str(here.parents[1])], folder=str(tmp_path / "out")))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / "out" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    alone = quiet()
    train(tmp_path / "one", alone, model=gpt2(dropout=0.0), max_steps=6)
    assert one == other
    assert one == pytest.approx([snapshot.total_norm for snapshot in alone.history], rel=1e-4)
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 1


def test_an_evaluation_is_not_measured(tmp_path: Path) -> None:
    callback = quiet()
    arguments = TrainingArguments(**settings(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2))
    trainer = Trainer(gpt2(), arguments, train_dataset=Texts(), eval_dataset=Texts(16), callbacks=[callback])
    trainer.train()
    assert callback.steps == 6
    assert [snapshot.step for snapshot in callback.history] == list(range(6))
    assert Texts()[0]["input_ids"].shape == (LENGTH,)


def test_the_operation_that_made_nan_is_named_with_its_layer(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return (hidden - 1e3).sqrt()

    model = gpt2()
    model.transformer.h[1].mlp.act = Root()
    callback = quiet()
    with pytest.warns(UserWarning, match="sqrt"):
        train(tmp_path, callback, model=model, max_steps=4)
    assert callback.findings[0].case == "sqrt"
    assert "transformer.h.1.mlp.act" in callback.findings[0].layers


PLACES = "gradwatch.integrations.transformers"
FAULTS = [f"{PLACES}.{name}" for name in ("trainer_that_calls", "find_ranks", "places_of", "Losses", "ForwardAgain")]
FAULTS += [f"{PLACES}.Facts.{name}" for name in ("begin", "look", "told")]
FAULTS += ["gradwatch.pipeline.watcher.parameters_of", "gradwatch.pipeline.watcher.Probe"]


@pytest.mark.parametrize("place", FAULTS)
@pytest.mark.filterwarnings("ignore:gradwatch")
def test_a_fault_of_the_watching_neither_ends_nor_changes_the_training(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError("a fault")

    bare, callback = train(tmp_path / "a", max_steps=4), quiet(on_error="warn")
    with monkeypatch.context() as patched:
        if place.endswith("Probe"):
            callback._make_watcher = fails
        else:
            patched.setattr(place, fails)
        watched = train(tmp_path / "b", callback, max_steps=4)
    assert same_weights(bare, watched)
    assert watched.state.global_step == 4
