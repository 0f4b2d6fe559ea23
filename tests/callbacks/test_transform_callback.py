"""GradientTransform: what it logs, says, refuses, keeps; and from YAML."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from small_fits import Regression, fit, fit_until, same_weights, trainer
from torch.utils._python_dispatch import TorchDispatchMode

from gradwatch.callbacks.trainer_checks import check_trainer
from gradwatch.callbacks.transform import GradientTransform, OptimizerRun
from gradwatch.records import Finding
from gradwatch.transforms import (
    AddNoise,
    Chain,
    ClipByGlobalNorm,
    ClipByNorm,
    ClipByValue,
    Only,
    PercentileClip,
    SkipNonFinite,
    StepContext,
    Transform,
    When,
    ZeroNonFinite,
    ZScoreClip,
)


class Doctor(Callback):
    """Has a finding open from a step to another, as a monitor would."""

    def __init__(self, kind: str, first: int, last: int) -> None:
        self.finding = Finding(kind, ("net",), first, 1.0, 0.5, "it is bad")
        self.first, self.last = first, last
        self.findings: list[Finding] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.findings = [self.finding] if self.first <= trainer.global_step < self.last else []


def test_when_acts_while_the_finding_is_open() -> None:
    acted: list[int] = []
    when = When("exploding", lambda params, context: acted.append(context.step))
    fit([Doctor("exploding", 3, 6), GradientTransform(when)], max_steps=10)
    assert acted == [3, 4, 5]


def test_when_without_a_monitor_is_refused() -> None:
    with pytest.raises(ValueError, match="no GradientMonitor; add one before it"):
        fit(GradientTransform([When("exploding", ClipByNorm(1.0))]))


def test_a_monitor_behind_it_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="already edited"):
        fit([GradientTransform(ClipByNorm(1.0)), Doctor("dead", 0, 1)], max_steps=1)


def test_a_pattern_that_matches_nothing_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match=r"'nett.\*' matches no parameter; the nearest of the 8 parameters are 'net"):
        fit(GradientTransform(Only("nett.*", ClipByNorm(1.0))))


def test_a_second_clip_is_refused_and_both_are_named() -> None:
    chain = GradientTransform([Only("net.*", ClipByNorm(1.0))])
    with pytest.raises(ValueError, match=r"gradient_clip_val=0.5\) and ClipByNorm\(max_norm=1.0\)"):
        fit(chain, gradient_clip_val=0.5)
    fit(GradientTransform(ZeroNonFinite()), gradient_clip_val=0.5, max_steps=1)


def _sharded_by(strategy: type) -> SimpleNamespace:
    plugin = SimpleNamespace(scaler=None)
    return SimpleNamespace(strategy=object.__new__(strategy), precision_plugin=plugin, gradient_clip_val=None)


def test_fsdp1_is_refused_but_for_elementwise_transforms() -> None:
    with pytest.raises(ValueError, match=r"ClipByNorm.*use FSDP2 \(ModelParallelStrategy"):
        check_trainer(Chain([ZeroNonFinite(), Only("*", ClipByNorm(1.0))]), _sharded_by(FSDPStrategy))
    check_trainer(Chain([ZeroNonFinite(), ClipByValue(1.0)]), _sharded_by(FSDPStrategy))


def test_deepspeed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy is a DeepSpeedStrategy.*nothing to transform; use DDP or FSDP2"):
        check_trainer(ZeroNonFinite(), _sharded_by(DeepSpeedStrategy))


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_that_is_not_logged_reads_nothing_back() -> None:
    model = Regression()
    run = OptimizerRun(Chain([ZScoreClip(), PercentileClip(), ClipByGlobalNorm(1.0), AddNoise()]))
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        with NoHostReads():
            run.step(dict(model.named_parameters()), StepContext())
    assert run.steps == 3


def test_what_is_logged(tmp_path: Path) -> None:
    callback = GradientTransform([SkipNonFinite(), ClipByGlobalNorm(0.3)])
    model = fit(callback, Regression(bad_batches=(7,)), logger=CSVLogger(tmp_path, version=0), max_steps=21)
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["skipped_steps"]]
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 15, 20]
    for row in rows:
        before, after = float(row["grad_norm_total"]), float(row["grad_norm_total_after"])
        assert after == pytest.approx(min(before, 0.3), rel=1e-4)
        assert float(row["clip_coefficient"]) == pytest.approx(min(1.0, 0.3 / before), rel=1e-4)
    assert [float(row["skipped_steps"]) for row in rows] == [0, 0, 1, 1, 1]
    assert 0 < float(model.trainer.callback_metrics["clipped_share"]) <= 1
    assert model.trainer.callback_metrics["skipped_steps"] == 1


def test_the_norms_are_left_to_a_monitor(tmp_path: Path) -> None:
    fit([Doctor("dead", 0, 0), GradientTransform(ClipByGlobalNorm(0.3))], logger=CSVLogger(tmp_path, version=0))
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "clipped_share" in header
    assert "grad_norm_total" not in header


def test_clipping_most_steps_is_said_once() -> None:
    with pytest.warns(UserWarning, match="100% of 101 steps were clipped.*learning rate is the likelier") as caught:
        fit(GradientTransform(ClipByGlobalNorm(1e-4)), max_steps=150)
    assert sum("were clipped" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("transform", [ClipByGlobalNorm(1e9), PercentileClip(10)])
def test_clipping_few_steps_or_by_design_is_not_said(transform: Transform) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(GradientTransform(transform), max_steps=110)
    assert not [warning for warning in caught if "were clipped" in str(warning.message)]


STATEFUL: dict[str, Callable[[], object]] = {
    "PercentileClip": lambda: PercentileClip(30, history=8),
    "ZScoreClip": lambda: ZScoreClip(warmup=10),
    "ZScoreClip-long": lambda: ZScoreClip(warmup=45, max_norm=0.5),
    "AddNoise": lambda: AddNoise(1e-4),
    "SkipNonFinite": lambda: SkipNonFinite(),
    "all": lambda: [SkipNonFinite(), Chain([Only("net.0.*", ZScoreClip())]), PercentileClip(50), AddNoise()],
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_resumed_at_step_37_ends_bitwise_as_if_never_stopped(name: str, tmp_path: Path) -> None:
    bad = (20, 50) if name in ("SkipNonFinite", "all") else ()

    def callback() -> GradientTransform:
        return GradientTransform(STATEFUL[name]())

    whole, stopped, resumed = callback(), callback(), callback()
    expected = fit(whole, Regression(bad_batches=bad), max_steps=60)
    saved = fit_until(37, tmp_path, stopped, Regression(bad_batches=bad))
    got = fit(resumed, Regression(bad_batches=bad), max_steps=60, ckpt_path=saved)
    assert all(param.isfinite().all() for param in got.parameters())
    assert same_weights(got, expected)
    assert str(resumed.state_dict()) == str(whole.state_dict())


def test_the_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    model = fit(GradientTransform([PercentileClip(), ZScoreClip(), SkipNonFinite(), AddNoise()]), max_steps=5)
    model.trainer.save_checkpoint(tmp_path / "some.ckpt")
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)
    assert any(key.startswith("GradientTransform") for key in saved["callbacks"])


def test_two_of_them_in_one_trainer() -> None:
    first, second = GradientTransform(ZScoreClip()), GradientTransform(PercentileClip())
    fit([first, second], max_steps=3)
    assert first.state_key != second.state_key


YAML = """
trainer:
  accelerator: cpu
  max_steps: 3
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: gradwatch.callbacks.transform.GradientTransform
      init_args:
        transforms:
          - class_path: gradwatch.transforms.SkipNonFinite
            init_args: {budget: 3}
          - class_path: gradwatch.transforms.Only
            init_args:
              pattern: net.0.*
              transform:
                class_path: gradwatch.transforms.ClipByNorm
                init_args: {max_norm: 0.5}
          - class_path: gradwatch.transforms.ClipByGlobalNorm
            init_args: {max_norm: 0.1}
    - class_path: gradwatch.callbacks.transform.GradientTransform
      init_args:
        on_error: warn
        transforms:
          class_path: gradwatch.transforms.ZeroNonFinite
    - class_path: gradwatch.callbacks.backward.BackwardTransform
      init_args:
        layers: [net.3]
        transforms:
          class_path: gradwatch.transforms.ClipByValue
          init_args: {bound: 1.0}
    - class_path: gradwatch.callbacks.layerwise.LayerwiseTraining
      init_args:
        stages:
          - {layers: [net.5], epochs: 1}
          - {layers: ["*"]}
"""


class Plain(Regression):
    def __init__(self) -> None:
        super().__init__()


def test_a_yaml_of_the_lightning_cli(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(YAML)
    cli = LightningCLI(Plain, args=["fit", "--config", str(tmp_path / "config.yaml")], save_config_callback=None)
    chains = [repr(c.transform) for c in cli.trainer.callbacks if isinstance(c, GradientTransform)]
    assert chains == [
        "Chain(transforms=(SkipNonFinite(budget=3), Only(pattern='net.0.*', transform=ClipByNorm(max_norm=0.5)), "
        "ClipByGlobalNorm(max_norm=0.1, p=2.0)))",
        "Chain(transforms=(ZeroNonFinite(),))",
    ]
    assert cli.trainer.global_step == 3


def test_trainer_without_logging_interval() -> None:
    callback = GradientTransform(ClipByGlobalNorm(0.3))
    model = Regression()
    trainer(callback, max_steps=2, log_every_n_steps=0).fit(model)
    assert callback.state_dict()["0"]["steps"] == 2
