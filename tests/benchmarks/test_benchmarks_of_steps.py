"""The benchmarks of a step's time run and write their tables; the figures of so few steps mean nothing."""

import math
import time
from pathlib import Path

import columns_cost
import overhead
import pytest
import torch
import turns
from figures import read
from torch import nn
from variants import VARIANTS, Variant
from workloads import WORKLOADS, Workload

from gradwatch import GradientMonitor
from gradwatch.pipeline import reports


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A network with an in-place ReLU, on which full backward hooks can't be used."""
    network = Workload(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 10)), lambda: torch.randn(8, 4), 4
    )
    monkeypatch.setitem(WORKLOADS, "tiny", network)
    return "tiny"


def test_every_variant_has_a_row_with_a_ratio_or_a_reason(tiny: str, tmp_path: Path) -> None:
    variants = [name for name, variant in VARIANTS.items() if variant.requires is None and variant.every == 1]
    overhead.main([tiny], variants, rounds=1, steps=4, csv_file=tmp_path / "new" / "overhead.csv")
    rows = {row["variant"]: row for row in read(tmp_path / "new" / "overhead.csv")}
    assert list(rows) == variants
    hooks = rows.pop("full backward hooks")
    assert hooks["ratio"] == ""
    assert hooks["note"].startswith("cannot run: Output 0 of BackwardHookFunction")  # torch 2.4 adds "Backward"
    assert " is a view and is being modified inplace" in hooks["note"]
    for row in rows.values():
        assert 0 < float(row["lowest"]) <= float(row["ratio"]) <= float(row["highest"])
        assert row["note"] == ""


def test_a_variant_whose_package_is_missing_says_so(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    overhead.main([tiny], ["wandb.watch"], rounds=1, steps=4, csv_file=tmp_path / "overhead.csv")
    assert "wandb.watch is left out: wandb is not installed" in capsys.readouterr().out
    assert read(tmp_path / "overhead.csv")[1]["note"] == "left out: wandb is not installed"


def test_wandb_watch_runs_offline(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    overhead.main([tiny], ["wandb.watch"], rounds=1, steps=4, csv_file=tmp_path / "overhead.csv")
    assert float(read(tmp_path / "overhead.csv")[1]["ratio"]) > 0


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_trains(name: str) -> None:
    if package := WORKLOADS[name].requires:
        pytest.importorskip(package)
    module, (x, y) = WORKLOADS[name].module(), next(iter(WORKLOADS[name].loader()))
    assert len(x) == len(y) > 2
    optimizer = module.configure_optimizers()
    before = [param.clone() for param in module.parameters()]
    loss = module.loss(module.network, x[:2], y[:2])
    loss.backward()
    optimizer.step()
    assert math.isfinite(loss.item())
    assert any((param != old).any() for param, old in zip(module.parameters(), before, strict=True))


def first_over_last(name: str) -> float:
    """Norm of the gradient of the MLP's first weight over that of its last one."""
    module, batch = WORKLOADS[name].module(), next(iter(WORKLOADS[name].loader()))
    module.loss(module.network, *batch).backward()
    norms = [param.grad.norm().item() for param in module.parameters() if param.ndim == 2 and param.grad is not None]
    return norms[0] / norms[-1]


def test_the_gradient_vanishes_with_the_default_weights_alone() -> None:
    assert first_over_last("mlp-64") > 1e-2
    assert first_over_last("mlp-64-default") < 1e-6


def test_gpt2_has_its_layers_and_dropouts() -> None:
    pytest.importorskip("transformers")
    network = WORKLOADS["gpt2-12"].module().network
    assert len(network.transformer.h) == 12
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.1}
    assert network.training


def test_a_workload_whose_package_is_missing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for whole_fits in (0, 1):
        overhead.main(["gpt2-12"], csv_file=tmp_path / "overhead.csv", whole_fits=whole_fits)
        assert "gpt2-12 is left out: transformers is not installed" in capsys.readouterr().out
        notes = {row["note"] for row in read(tmp_path / "overhead.csv")}
        assert notes == {"left out: transformers is not installed"}


def test_whole_fits_end_in_a_ratio(tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overhead.main([tiny], csv_file=tmp_path / "whole.csv", whole_fits=1, fit_steps=7)  # the last turn is a short one
    rows = read(tmp_path / "whole.csv")
    assert [row["variant"] for row in rows] == ["bare", "bare again", "gradwatch default"]
    assert {row["note"] for row in rows} == {"whole fits of 7 steps"}
    assert all(0 < float(row["lowest"]) <= float(row["ratio"]) <= float(row["highest"]) for row in rows)
    assert all(float(row["processor ratio"]) > 0 for row in rows)
    assert rows[0]["ratio"] == "1.000"
    printed = capfd.readouterr().out
    assert "gradwatch default" in printed
    assert "the record" not in printed  # what the monitor prints is thrown away


def test_a_fit_has_all_that_a_user_gets(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monitors: list[GradientMonitor] = []
    variant = Variant(lambda folder: monitors.append(GradientMonitor()) or monitors[-1])
    fit = turns.Fit(WORKLOADS[tiny], variant, turns.Baton(0, 4), 30)
    costs = []
    while not fit.is_over:
        costs.append(fit.turn())
    assert len(costs) == 9  # to the first step, eight turns of steps, and the end in the last of these
    assert all(seconds > 0 for seconds, _ in costs)
    assert [snapshot.step for snapshot in monitors[0].history] == [*range(20), 29]
    fit.close()


def test_time_between_turns_is_no_time_of_the_fit() -> None:
    clock, begun = turns.OwnClock(), time.monotonic()
    with clock.running():
        own = clock.monotonic()
        assert reports.time is clock
    time.sleep(0.1)
    with clock.running():
        assert time.monotonic() - begun - (clock.monotonic() - own) >= 0.1
    assert reports.time is time


def test_each_group_of_columns_has_a_row(tiny: str, tmp_path: Path) -> None:
    columns_cost.main([tiny], count=2, csv_file=tmp_path / "columns.csv")
    rows = {row["read"]: row for row in read(tmp_path / "columns.csv")}
    assert set(rows) == {*columns_cost.READINGS, "all of these", "rest of the step", "whole step"}
    for group in ("outputs", "units", "gradients at outputs", "updates", "detectors", "record", "TensorBoard"):
        assert float(rows[group]["calls"]) >= 1
    assert float(rows["time steps"]["calls"]) == 0
    assert float(rows["whole step"]["ms"]) > float(rows["all of these"]["ms"]) > 0
    assert float(rows["updates"]["ms, unmeasured"]) == 0


def test_a_group_names_the_function_that_is_gone(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(columns_cost.READINGS, "ranks", ("rank", ("gradwatch.probe.hooks:LayerHooks._read_rank",)))
    with pytest.raises(LookupError, match=r"LayerHooks\._read_rank, of 'ranks', is not there"):
        columns_cost.main([tiny], count=2)
