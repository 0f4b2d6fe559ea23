"""Compiled models: compiled as often as without the monitor, right numbers, and one message for what can't be had."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from lightning.pytorch import LightningModule
from models import Net, loader, mlp, trainer
from torch import Tensor, nn

from gradwatch import GradientMonitor, Snapshot, watch
from gradwatch.metrics import GradientNorm

STEPS = 14
CAN_SWITCH_OFF = hasattr(torch.compiler, "set_stance")
needs_stance = pytest.mark.skipif(not CAN_SWITCH_OFF, reason="torch.compiler.set_stance came with torch 2.6")


class Backend:
    """Runs what it is given as it is, and counts how often it is given something."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return graph.forward


class Body(nn.Module):
    """Not a Sequential, which compiles in place with fullgraph=False only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = mlp(nn.Tanh), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def bare(backend: Backend) -> Net:
    torch.manual_seed(0)
    return Net(Body())


def inside(backend: Backend) -> Net:
    model = bare(backend)
    model.network = torch.compile(model.network, backend=backend, fullgraph=True)
    return model


def in_place(backend: Backend) -> Net:
    model = bare(backend)
    model.network.compile(backend=backend, fullgraph=True)
    return model


def by_lightning(backend: Backend) -> Any:
    return torch.compile(bare(backend), backend=backend)


def in_part(backend: Backend) -> Net:
    model = bare(backend)
    model.network.layers = torch.compile(model.network.layers, backend=backend, fullgraph=True)
    return model


class Outside(Net):
    """Compiled by a function of its own, of which nothing on the modules tells."""

    fast: Callable[[Tensor], Tensor]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.fast(batch[0]), batch[1])


def outside(backend: Backend) -> Outside:
    torch.manual_seed(0)
    model = Outside(Body())
    compiled = torch.compile(lambda x: model.network(x), backend=backend, fullgraph=True)
    object.__setattr__(model, "fast", compiled)
    return model


WAYS = {"inside": inside, "in place": in_place, "by Lightning": by_lightning, "outside": outside}


@cache
def run(
    make: Callable[[Backend], Any], watched: bool = True, **options: Any
) -> tuple[list[Snapshot], int, list[str], LightningModule]:
    """Snapshots, how often something was compiled, what was said of it, and the model after the fit."""
    backend = Backend()
    model = make(backend)
    # Healthy: what is missing makes no finding.
    monitor = GradientMonitor(summary=False, every_n_steps=3, dense_steps=2, on_finding="raise", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(None, *([monitor] if watched else []), max_steps=STEPS)
        fit.fit(model, loader())
    said = [str(warning.message) for warning in caught if "measure_eagerly" in str(warning.message)]
    return [*monitor.history], backend.count, said, fit.lightning_module


MISSING = ("grad_output_norm", "grad_output_rms", "gain", "output_rms", "saturated_fraction")


@pytest.mark.parametrize("way", WAYS)
def test_in_compiled_code_parameters_are_read_and_the_rest_is_listed_as_missing(way: str) -> None:
    plain, _, said, _ = run(bare)
    assert said == []
    compiled, _, said, _ = run(WAYS[way])
    assert [snapshot.step for snapshot in compiled] == [0, 1, 3, 6, 9, 12]
    for one, other in zip(plain, compiled, strict=True):
        assert (other.layers, other.kinds, other.params) == (one.layers, one.kinds, one.params)
        for column in ("grad_norm", "weight_norm", "param_grad_norm"):
            np.testing.assert_allclose(getattr(other, column), getattr(one, column), rtol=1e-6, err_msg=column)
        assert other.total_norm == pytest.approx(one.total_norm, rel=1e-6)
        assert all(other.missing[column] == other.layers for column in MISSING)
    assert len(said) == 1
    assert "6 layers (network.layers.0, network.layers.1, network.layers.2, ...)" in said[0]


@pytest.mark.parametrize("way", WAYS)
def test_hooks_that_come_and_go_compile_nothing_anew(way: str) -> None:
    _, unwatched, _, model = run(WAYS[way], watched=False)
    _, watched, _, watched_model = run(WAYS[way])
    # Of what is compiled outside the model nothing is known: in its first step hooks stand there, and never again.
    assert (unwatched, watched) == (1, 2 if way == "outside" else 1)
    states = model.state_dict(), watched_model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@needs_stance
@pytest.mark.parametrize("way", WAYS)
def test_measured_eagerly_every_column_is_as_without_compiling(way: str) -> None:
    plain, _, _, _ = run(bare)
    _, unwatched, _, _ = run(WAYS[way], watched=False)
    eager, compiled, said, _ = run(WAYS[way], measure_eagerly=True)
    assert compiled == unwatched  # the first steps are measured, and it is compiled at the first that is not
    assert said == []
    for one, other in zip(plain, eager, strict=True):
        assert other.missing == one.missing
        for column in ("grad_norm", *MISSING):
            np.testing.assert_allclose(getattr(other, column), getattr(one, column), rtol=1e-5, err_msg=column)


def test_layers_around_a_compiled_part_are_read() -> None:
    (first, *_), _, said, _ = run(in_part)
    head = first.layers.index("network.head")
    assert np.isfinite(first.grad_output_norm[head])
    assert np.isnan(first.grad_output_norm[:head]).all()
    assert len(said) == 1
    assert said[0].startswith("gradwatch: 5 of 6 layers (network.layers.0,")


def test_a_layer_whose_forward_is_compiled_is_read() -> None:
    def decorated(backend: Backend) -> Net:
        model = bare(backend)
        head = model.network.head
        head.forward = torch.compile(head.forward, backend=backend)
        return model

    plain, _, _, _ = run(bare)
    compiled, _, said, _ = run(decorated)
    assert said == []
    assert compiled[0].missing == plain[0].missing
    np.testing.assert_allclose(compiled[-1].grad_output_norm, plain[-1].grad_output_norm, rtol=1e-5)


def test_patterns_name_layers_as_without_compiling() -> None:
    snapshots, _, _, _ = run(inside, include=("network.layers.*",), exclude=("*.2",))
    assert snapshots[0].layers == tuple(f"network.layers.{i}" for i in (0, 1, 3, 4))


def test_the_metric_names_parameters_as_without_compiling() -> None:
    body, norm = mlp(), GradientNorm("0.*")
    model = torch.compile(body, backend=Backend())
    model(torch.ones(2, 8)).sum().backward()
    assert norm(model) == pytest.approx(torch.cat([p.grad.flatten() for p in body[0].parameters()]).norm().item())


@needs_stance
def test_an_error_leaves_compiled_code_switched_on() -> None:
    backend = Backend()
    model = Body()
    fast = torch.compile(model, backend=backend)

    def loop() -> None:
        with watch(model, measure_eagerly=True):
            fast(torch.ones(1, 8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert backend.count == 0
    fast(torch.ones(1, 8))
    assert backend.count == 1


@pytest.mark.skipif(CAN_SWITCH_OFF, reason="this torch can")
def test_a_torch_that_cannot_switch_compiled_code_off_is_refused() -> None:
    with pytest.raises(ValueError, match=r"measure_eagerly=True needs torch 2\.6 or newer, this is 2\."):
        GradientMonitor(measure_eagerly=True)


def test_a_model_that_computes_with_its_parameters_directly_is_told_so() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight.T

    model = Functional()
    with watch(model) as watcher, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model(torch.ones(2, 4)).sum().backward()
            watcher.step(torch.optim.SGD(model.parameters()))
    assert len(caught) == 1
    assert "none of 1 layers (layer) was called as a module" in str(caught[0].message)
