"""The update of each parameter is what a float64 loop over copies of the weights measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwatch import Snapshot, Watcher, watch
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.updates import Updates, sample_of

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 1))


def loss_of(model: nn.Module) -> Tensor:
    return (model(X).squeeze(-1).float() - X.sum(1).sin()).square().mean()


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().double().clone() for name, param in model.named_parameters()}


def expected(before: dict[str, Tensor], model: nn.Module) -> dict[str, float]:
    return {name: float((now - before[name]).norm()) for name, now in copies(model).items()}


def assert_measured(snapshot: Snapshot, wanted: dict[str, float], rel: float = 1e-6) -> None:
    assert {*snapshot.params} == {*wanted}
    for name, update in zip(snapshot.params, snapshot.param_update_norm.tolist(), strict=True):
        assert update == pytest.approx(wanted[name], rel=rel, abs=1e-12), name


SGD, Adam = torch.optim.SGD, torch.optim.Adam
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD with momentum": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda params: Adam(params, lr=1e-2),
    "fused": lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
    "foreach": lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=True),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-2),
    "a tiny rate": lambda params: SGD(params, lr=1e-6),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_update_is_that_of_a_float64_loop_over_copies(make: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = make(model.parameters())
    with watch(model, detectors=[]) as watcher:
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward()
            before = copies(model)
            snapshot = watcher.step(optimizer)
            assert_measured(snapshot, expected(before, model))
            weights = np.array([float(before[name].norm()) for name in snapshot.params])
            np.testing.assert_allclose(snapshot.param_weight_norm, weights, rtol=1e-6)
    by_layer = math.hypot(*snapshot.param_update_norm[:2])
    assert snapshot.update_norm[0] == pytest.approx(by_layer)
    assert snapshot.update_to_weight[0] == pytest.approx(by_layer / snapshot.weight_norm[0])


def test_a_closure_that_is_called_many_times_makes_one_update() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    with watch(model, detectors=[]) as watcher:

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            watcher.read(optimizer)
            return loss

        before = copies(model)
        snapshot = watcher.step(optimizer, closure=closure)
    assert_measured(snapshot, expected(before, model))


def test_of_several_optimizers_each_has_its_own_update_and_group() -> None:
    model = network()
    first, last = SGD(model[0].parameters(), lr=0.5), Adam([{"params": model[3].parameters()}], lr=0.25)
    rest = SGD(model[1].parameters(), lr=0.125)
    with watch(model, detectors=[]) as watcher:
        loss_of(model).backward()
        before = copies(model)
        for optimizer in (first, last):
            watcher.read(optimizer)
            optimizer.step()
        snapshot = watcher.step(rest)
    assert_measured(snapshot, expected(before, model))
    assert dict(zip(snapshot.params, snapshot.param_groups, strict=True))["3.weight"] == "Adam 0"
    assert dict(zip(snapshot.groups, snapshot.group_learning_rate, strict=True)) == {
        "SGD 0": 0.5, "SGD-1 0": 0.125, "Adam 0": 0.25,
    }  # fmt: skip


def test_half_precision_counts_the_entries_that_change() -> None:
    model = network().bfloat16()
    optimizer = SGD(model.parameters(), lr=1e-3)
    with watch(model, detectors=[]) as watcher:
        (model(X.bfloat16()).float().squeeze(-1) - X.sum(1)).square().mean().backward()
        before = copies(model)
        snapshot = watcher.step(optimizer)
    assert_measured(snapshot, expected(before, model))
    changed = [float((now != before[name]).double().mean()) for name, now in copies(model).items()]
    np.testing.assert_allclose(snapshot.param_changed, changed)
    assert 0 < changed[0] < 1
    assert set(snapshot.param_dtypes) == {"bfloat16"}


def test_complex_and_sparse_and_shared_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waves = nn.Parameter(torch.randn(6, dtype=torch.complex64))
            self.words = nn.Embedding(50, 4, sparse=True)
            self.tied = nn.Linear(4, 50, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.tied(self.words(tokens)).logsumexp(-1).mean() + self.waves.abs().square().sum()

    torch.manual_seed(0)
    model = Odd()
    optimizer = SGD(model.parameters(), lr=0.3)
    with watch(model, detectors=[]) as watcher:
        model(torch.arange(5)).backward()
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        snapshot = watcher.step(optimizer)
    now = dict(model.named_parameters())
    wanted = {name: float((now[name].detach() - before[name]).norm()) for name in before}
    assert_measured(snapshot, wanted, rel=1e-5)


def test_a_step_that_a_loss_scaler_skips_changes_nothing() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with watch(model, detectors=[]) as watcher:
        for broken in (True, False):
            optimizer.zero_grad()
            scaler.scale(loss_of(model)).backward()
            if broken:
                model[0].weight.grad[0, 0] = math.inf
            before = copies(model)
            snapshot = watcher.step(optimizer, scaler=scaler)
            scaler.update()
            assert snapshot.skipped is broken
            assert_measured(snapshot, expected(before, model))
            assert bool(snapshot.update_norm[0] == 0) is broken


def test_a_large_parameter_is_sampled_and_its_norm_estimated() -> None:
    torch.manual_seed(0)
    model = nn.Linear(600, 700)
    optimizer = Adam(model.parameters(), lr=1e-3)
    with watch(model, detectors=[], update_bytes=0) as watcher:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(32, 600)).square().sum().backward()
            before = copies(model)
            snapshot = watcher.step(optimizer)
            assert_measured(snapshot, expected(before, model), rel=0.03)
            assert snapshot.param_update_norm[1] == pytest.approx(expected(before, model)["bias"])


def test_what_is_kept_stays_under_the_bound_and_is_let_go() -> None:
    model = nn.Sequential(*(nn.Linear(300, 300, bias=False) for _ in range(8)))
    whole = 300 * 300 * 4
    updates, named = Updates(bound=3 * whole), dict(model.named_parameters())
    scalars = DeviceScalars()
    updates.keep(named, scalars)
    sizes = sorted(kept.before.numel() * 4 for kept in updates._waiting.values())
    assert sizes[-4:] == [sizes[0], whole, whole, whole]
    assert sizes[0] <= 2048 * 16 * 4
    updates.measure(scalars)
    assert not updates._waiting
    assert set(updates.changes) == set(named)


def test_of_very_many_large_parameters_less_is_kept_of_each() -> None:
    named = {str(i): nn.Parameter(torch.zeros(70, 500)) for i in range(2000)}
    updates = Updates(bound=0)
    updates.keep(named, DeviceScalars())
    kept = sum(kept.before.numel() * 4 for kept in updates._waiting.values())
    assert kept <= 64 * 2**20
    assert all(kept.blocks == 524 for kept in updates._waiting.values())


def test_a_sample_lies_in_all_rows_and_columns() -> None:
    values = torch.arange(768 * 3072).reshape(768, 3072)
    sample = sample_of(values).flatten()
    assert len(sample) == 2048 * 16
    assert len(torch.unique(sample % 3072)) == 3072
    assert len(torch.unique(sample // 3072)) >= 767  # a block ends before the last row


def test_a_parameter_that_is_replaced_during_the_step_has_no_update() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with watch(model, detectors=[]) as watcher:
        loss_of(model).backward()
        watcher.read(optimizer)
        model[0].weight.data = torch.zeros(3, 3)
        snapshot = watcher.end()
    assert np.isnan(snapshot.param_update_norm).tolist() == [True, False, False, False, False, False]


def put_back_after_each_step(watcher: Watcher, model: nn.Module, steps: int) -> list[Snapshot]:
    optimizer, held, found = SGD(model.parameters(), lr=0.1), model[0].weight.detach().clone(), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        found.append(watcher.step(optimizer))
        model[0].weight.data.copy_(held)
    return found


def test_weights_that_are_put_back_are_noticed_from_the_third_step_on() -> None:
    model = network()
    with watch(model, detectors=[]) as watcher:
        found = put_back_after_each_step(watcher, model, 5)
    assert [snapshot.param_put_back[0] for snapshot in found][3:] == [1.0, 1.0]
    assert found[-1].param_update_norm[0] > 0
    assert np.isnan(found[-1].param_put_back[1:]).all()
