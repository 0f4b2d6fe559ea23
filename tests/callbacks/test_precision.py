"""Every number is right in every precision: held against the same step in float64, computed the slow way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision
from lightning.pytorch.plugins import MixedPrecision
from models import Net, loader, mlp, trainer
from torch import Tensor, nn

from gradwatch import GradientMonitor, Snapshot, watch


class Tuned(Net):
    """A Net with any optimizer; its first batch is all there is."""

    def __init__(self, optimizer: Any = torch.optim.SGD, **settings: Any) -> None:
        super().__init__(mlp(nn.Tanh))
        self.make = lambda params: optimizer(params, **{"lr": 0.01, **settings})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


def fused_adam() -> Tuned:
    return Tuned(torch.optim.Adam, fused=True)


def fp16(init_scale: float = 1024.0) -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=init_scale))]}


def quiet(**options: Any) -> GradientMonitor:
    return GradientMonitor(**{"summary": False, "detectors": [], "every_n_steps": 1, **options})


def fit(tmp_path: Path, model: Net, monitor: GradientMonitor, **options: Any) -> Any:
    run = trainer(tmp_path, monitor, **{"max_steps": 1, **options})
    run.fit(model, loader())
    return run


def reference(batch: int = 16) -> dict[str, np.ndarray]:
    """The first step in float64, by autograd itself."""
    network = mlp(nn.Tanh).double()
    x, y = next(iter(loader(batch=batch)))
    outputs: list[Tensor] = [x.double()]
    for layer in network:
        outputs.append(layer(outputs[-1]))
        outputs[-1].retain_grad()
    nn.functional.cross_entropy(outputs[-1], y).backward()
    by_layer = [[param.grad for param in layer.parameters()] for layer in network]
    return {
        "grad_norm": np.array([norm(*grads) if grads else np.nan for grads in by_layer]),
        "weight_norm": np.array(
            [norm(*layer.parameters()) if list(layer.parameters()) else np.nan for layer in network]
        ),
        "grad_output_norm": np.array([norm(output.grad) for output in outputs[1:]]),
        "output_rms": np.array([norm(output) / output.numel() ** 0.5 for output in outputs[1:]]),
        "total_norm": np.array(norm(*(param.grad for param in network.parameters()))),
    }


def norm(*tensors: Tensor) -> float:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).norm().item()


def assert_close(snapshot: Snapshot, rtol: float) -> None:
    for column, expected in reference().items():
        np.testing.assert_allclose(getattr(snapshot, column), expected, rtol=rtol, err_msg=column)
    assert snapshot.total_norm_after == snapshot.total_norm
    assert not snapshot.skipped


# The largest errors measured were 5e-8, 2e-16, 2e-4, 1e-4, 7e-4 and 7e-4: single roundings even out in a norm.
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "32-true": ({}, 1e-6),
    "64-true": ({"precision": "64-true"}, 1e-14),
    "16-mixed": ({"precision": "16-mixed"}, 1e-3),
    "16-true": ({"precision": "16-true"}, 1e-3),
    "bf16-mixed": ({"precision": "bf16-mixed"}, 4e-3),
    "bf16-true": ({"precision": "bf16-true"}, 4e-3),
}


@pytest.mark.parametrize("precision", SETTINGS)
def test_every_norm_is_that_of_float64_up_to_rounding(tmp_path: Path, precision: str) -> None:
    options, rtol = SETTINGS[precision]
    monitor = quiet()
    fit(tmp_path, Tuned(), monitor, **(fp16() if precision == "16-mixed" else options))
    assert_close(monitor.history[0], rtol)


def test_an_optimizer_that_unscales_by_itself(tmp_path: Path) -> None:
    monitor = quiet()
    run = fit(tmp_path, fused_adam(), monitor, **fp16())
    assert_close(monitor.history[0], 1e-3)
    assert float(run.callback_metrics["grad_norm_total"]) == monitor.history[0].total_norm


def test_under_fp16_a_step_of_several_batches_is_that_of_the_whole(tmp_path: Path) -> None:
    monitor = quiet()
    fit(tmp_path, Tuned(), monitor, **fp16(), accumulate_grad_batches=4, max_steps=2)
    whole = reference(batch=64)
    for column in ("grad_norm", "grad_output_norm", "total_norm"):
        np.testing.assert_allclose(getattr(monitor.history[0], column), whole[column], rtol=1e-3, err_msg=column)


@pytest.mark.parametrize("make", [Tuned, fused_adam])
def test_steps_that_the_scaler_leaves_out_are_marked(tmp_path: Path, make: Any) -> None:
    monitor, options = quiet(total_norm_every_step=True), fp16(2.0**24)
    run = fit(tmp_path, make(), monitor, **options, max_steps=12)
    skipped = [snapshot.skipped for snapshot in monitor.history]
    left_out = skipped.count(True)
    assert skipped[:3] == [True] * 3  # the scale falls until it fits
    assert left_out < 12
    assert run.precision_plugin.scaler.get_scale() == 2.0 ** (24 - left_out)
    assert np.isinf(monitor.history[0].grad_output_norm).all()
    assert np.isfinite(monitor.history[-1].grad_output_norm).all()
    for snapshot in monitor.history:
        assert np.isinf(snapshot.total_norm) == snapshot.skipped
        assert np.isnan(snapshot.trace_total_norm).all() == snapshot.skipped


@pytest.mark.parametrize("make", [Tuned, fused_adam])
def test_a_scalers_search_between_measured_steps_is_no_finding(tmp_path: Path, make: Any) -> None:
    monitor = GradientMonitor(summary=False, every_n_steps=25, dense_steps=1, total_norm_every_step=True)
    fit(tmp_path, make(), monitor, **fp16(2.0**24), max_steps=26)
    assert monitor.findings == []
    last = monitor.history[-1]
    known = last.trace_total_norm[~np.isnan(last.trace_total_norm)]
    assert last.step == 25
    assert 0 < len(known) < 25
    assert ((known > 0) & (known < 10)).all()


class TwoNetworks(Net):
    """Two optimizers stepped by hand; the loss of the first overflows in its first step."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)]))
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for network, optimizer, factor in zip(self.network, self.optimizers(), (1e6, 1.0), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
            self.manual_backward(loss * (factor if batch_idx == 0 else 1.0))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(network.parameters(), lr=0.01) for network in self.network]


def test_one_of_two_optimizers_that_does_not_step_marks_the_step(tmp_path: Path) -> None:
    monitor = quiet()
    fit(tmp_path, TwoNetworks(), monitor, **fp16(), max_steps=4)
    assert [snapshot.skipped for snapshot in monitor.history] == [True, False]
    assert np.isinf(monitor.history[0].grad_norm[0])
    assert np.isfinite(monitor.history[0].grad_norm[1])


@pytest.mark.parametrize(
    ("make", "options"),
    [(Tuned, fp16), (fused_adam, fp16), (Tuned, lambda: {"precision": "bf16-true"})],
    ids=["fp16", "fp16 fused", "bf16"],
)
def test_watching_changes_no_bit(tmp_path: Path, make: Any, options: Any) -> None:
    models = []
    for monitors in ([], [quiet(total_norm_every_step=True)]):
        torch.manual_seed(0)
        models.append(make())
        trainer(tmp_path, *monitors, max_steps=12, **options()).fit(models[-1], loader())
    bare, watched = (model.state_dict() for model in models)
    assert all(torch.equal(bare[name], watched[name]) for name in bare)


def loop(optimizer: str, *, clip: float | None = None, init_scale: float = 1024.0, steps: int = 1) -> list[Snapshot]:
    """A plain fp16 loop, as PyTorch's documentation writes it but for the watcher."""
    model, (x, y) = mlp(nn.Tanh), next(iter(loader()))
    stepped = torch.optim.Adam(model.parameters(), lr=0.01, fused=optimizer == "fused")
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    with watch(model, detectors=[]) as watcher:
        for _ in range(steps):
            stepped.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if clip is not None:
                scaler.unscale_(stepped)
                watcher.read(stepped)
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            watcher.step(stepped, loss, scaler=scaler)
            scaler.update()
    return watcher.history


@pytest.mark.parametrize("optimizer", ["plain", "fused"])
def test_a_plain_loop_with_a_scaler(optimizer: str) -> None:
    assert_close(loop(optimizer)[0], 1e-3)
    clipped = loop("plain", clip=0.1)[0]
    assert clipped.total_norm == pytest.approx(reference()["total_norm"], rel=1e-3)
    assert clipped.total_norm_after == pytest.approx(0.1, rel=1e-3)
    skipped = [snapshot.skipped for snapshot in loop(optimizer, init_scale=2.0**24, steps=12)]
    assert skipped[0]
    assert not skipped[-1]


def test_fabric_steps_the_scaler_by_itself() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=FabricMixedPrecision("16-mixed", "cpu", scaler))
    model, (x, y) = mlp(nn.Tanh), next(iter(loader()))
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.01))
    before = copy.deepcopy(model)
    with watch(model, detectors=[]) as watcher:
        loss = nn.functional.cross_entropy(wrapped(x), y)
        fabric.backward(loss)
        watcher.step(optimizer, loss, scaler=scaler)
    assert_close(watcher.history[0], 1e-3)
    moved = [(a - b).abs().max().item() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert 0 < max(moved) < 0.01


def test_a_scaler_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"scaler is a float; expected the torch\.amp\.GradScaler of the loss, or None"):
        watch(nn.Linear(1, 1)).step(torch.optim.SGD([nn.Parameter(torch.ones(1))]), scaler=1024.0)
