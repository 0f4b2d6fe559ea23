"""The commands run and write their tables; the figures of so few steps mean nothing."""

import json
import math
from pathlib import Path

import clip_cost
import large
import memory
import pytest
import scaling
import short_checks
import short_runs
import torch
from figures import read
from small_trainings import TRAININGS, Training
from torch import nn

from gradwatch.short_runs.loop import call
from gradwatch.testing import assert_healthy_gradients


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
