"""The commands run and write their tables; the figures of so few steps mean nothing."""

import csv
import json
import math
import time
from pathlib import Path

import clip_cost
import large
import memory
import overhead
import pytest
import scaling
import short_checks
import short_runs
import torch
import turns
from small_trainings import TRAININGS, Training
from torch import nn
from variants import VARIANTS, Variant
from workloads import WORKLOADS, Workload

from gradwatch import GradientMonitor
from gradwatch.pipeline import reports
from gradwatch.short_runs.loop import call
from gradwatch.testing import assert_healthy_gradients


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A network with an in-place ReLU, on which full backward hooks can't be used."""
    network = Workload(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 10)), lambda: torch.randn(8, 4), 8, 4
    )
    monkeypatch.setitem(WORKLOADS, "tiny", network)
    return "tiny"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
    assert len(x) == len(y) == WORKLOADS[name].batch
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


@pytest.mark.parametrize("length", [4, 7])  # in turns of 4 steps: the last turn may be a short one
def test_whole_fits_end_in_a_ratio(tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], length: int) -> None:
    overhead.main([tiny], csv_file=tmp_path / "whole.csv", whole_fits=2, fit_steps=length)
    rows = read(tmp_path / "whole.csv")
    assert [row["variant"] for row in rows] == ["bare", "bare again", "gradwatch default"]
    assert {row["note"] for row in rows} == {f"whole fits of {length} steps"}
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


@pytest.mark.parametrize(("axis", "sizes"), [("layers", [10, 20, 30]), ("parameters", [1000, 4000, 9000])])
def test_scaling_fits_a_line(axis: str, sizes: list[int], tmp_path: Path) -> None:
    scaling.main([axis], sizes, rounds=1, cycles=2, csv_file=tmp_path / "scaling.csv")
    rows = read(tmp_path / "scaling.csv")
    assert [(row["axis"], int(row["size"])) for row in rows] == [(axis, size) for size in sizes]
    assert all(float(row["R^2"]) <= 1 and math.isfinite(float(row["slope"])) for row in rows)


def test_scaling_refuses_a_network_without_room_for_the_classes() -> None:
    with pytest.raises(ValueError, match="10 layers of width 3 have no room for 10 classes"):
        scaling.main(["parameters"], [100])


def test_the_line_is_that_of_least_squares() -> None:
    line = scaling.Line.through([1, 2, 3], [3.0, 5.0, 7.0])
    assert (line.slope, line.start, line.r_squared) == pytest.approx((2, 1, 1))


def test_memory_compares_processes(tmp_path: Path) -> None:
    memory.main(["rnn-cell-50"], ["gradwatch every 1"], steps=4, csv_file=tmp_path / "memory.csv")
    bare, watched = read(tmp_path / "memory.csv")
    assert float(bare["over bare MB"]) == 0
    assert float(watched["peak MB"]) >= float(watched["start MB"]) > 0
    assert watched["verdict"] in ("within", "too much")


def test_memory_wants_enough_steps() -> None:
    with pytest.raises(ValueError, match="steps is 3; expected at least 4"):
        memory.main(steps=3)


def test_clip_cost_prints_a_line_for_each_transform(capsys: pytest.CaptureFixture[str]) -> None:
    clip_cost.main(rounds=1)
    assert capsys.readouterr().out.count("ClipByGlobalNorm") == 2


def classes(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return scale * torch.randn(64, 4), torch.randint(3, (64,))


TWICE = Training(lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), classes)
STEEP = Training(lambda: nn.Linear(4, 3), lambda: classes(100.0), lambda out, y: out.square().mean())


def test_short_checks_leave_out_what_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAININGS, "softmax twice", TWICE)
    monkeypatch.setitem(TRAININGS, "steep", STEEP)
    names = ["one linear", "softmax twice", "steep"]
    short_checks.main(1, names, steps=2, optimizers=["SGD 0.1"], csv_file=tmp_path / "short.csv")
    rows = read(tmp_path / "short.csv")
    counts = [tuple(row.values())[1:5] for row in rows if row["table"] == "short training"]
    assert counts == [
        ("one linear", "1", "0", "0"), ("softmax twice", "1", "0", "1"), ("steep", "0", "1", "0"),
        ("all", "2", "1", "1 (50.00%, 9.45%-90.55%)"),
    ]  # fmt: skip
    (found,) = [row for row in rows if row["table"] == "short training: accused"]
    assert (found["network"], found["optimizer"], found["seeds"]) == ("softmax twice", "SGD 0.1", "0")
    assert found["said"].startswith("zero-gradient head x1")
    passes = {row["network"]: row["accused"] for row in rows if row["table"] == "single pass"}
    assert (passes["one linear"], passes["softmax twice"]) == ("0", "1")


def test_short_checks_say_what_the_assertion_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAININGS, "softmax twice", TWICE)
    network, _, data = short_runs.start("softmax twice", seed=0)
    with pytest.raises(AssertionError, match="zero-gradient head"):
        assert_healthy_gradients(network, data, 3, loss=TWICE.loss, optimizer=short_runs.OPTIMIZERS["Adam 1e-3"])
    assert "zero-gradient head" in dict(short_runs.trained("softmax twice", 0, "Adam 1e-3", 3).said)


def test_every_small_training_has_a_loss_and_a_gradient() -> None:
    for name, training in TRAININGS.items():
        network, (inputs, targets), _ = short_runs.start(name, seed=2)
        (loss := training.loss(call(network, inputs), targets)).backward()
        assert loss.item() > 0
        assert any(param.grad is not None for param in network.parameters())


def test_large_models_are_measured_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    large.main(["layers", "--sizes", "20", "1001", "--steps", "1"])
    large.main(["records", "--layers", "20", "--steps", "3"])
    large.main(["parameters"])
    large.main(["ranks"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["keys"] for row in rows if "keys by layer" in row] == ["63", "12"]
    assert [row["record"] for row in rows if "record" in row] == ["JSON", "JSON, thinned", "Parquet"]
    assert rows[5]["amount"] == "1,087,879,168 in 230 tensors"
    sizes = {row["layers"]: row["sums, kB"] for row in rows if "sums, kB" in row}
    assert sizes["10,000"] == "4,723"  # as docs/large.md says
