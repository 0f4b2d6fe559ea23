"""Copies of parameters in the host's memory: what they tell of a step, and when they can't."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwatch.probe.host_copies import HostCopies, can_be_copied
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.updates import Updates

SIZES = {"large": (300, 400), "small": (7,), "middle": (64, 64), "scalar": (), "last small": (1024,), "huge": (70_001,)}


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in SIZES.items()}


def norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.detach().double()))


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-28])
def test_norms_before_and_of_the_change_for_every_size(scale: float) -> None:
    params = parameters()
    with torch.no_grad():
        for param in params.values():
            param.mul_(scale)
    copies = HostCopies(params)
    before = dict(zip(copies.names, copies.take(), strict=True))
    expected, changes = {name: norm(param) for name, param in params.items()}, {}
    with torch.no_grad():
        for name, param in params.items():
            old = param.clone()
            param.add_(0.1 * scale * torch.randn_like(param))
            changes[name] = norm(param - old)
    assert before == pytest.approx(expected, rel=1e-6, abs=0)
    assert dict(zip(copies.names, copies.changes(), strict=True)) == pytest.approx(changes, rel=1e-4, abs=0)


def test_a_parameter_in_another_order_of_memory_has_not_changed() -> None:
    params = {"large": nn.Parameter(torch.randn(400, 300).t()), "last": nn.Parameter(torch.randn(8, 16, 32, 32))}
    copies = HostCopies(params)
    copies.take()
    params["last"].data = params["last"].data.contiguous(memory_format=torch.channels_last)
    assert copies.changes().tolist() == [0.0, 0.0]


def test_a_parameter_that_was_moved_is_not_known_and_the_others_are() -> None:
    params = parameters()
    copies = HostCopies(params)
    copies.take()
    params["middle"].data = torch.zeros(3)
    params["small"].data = params["small"].data.double()
    params["large"].data.add_(1.0)
    changes = dict(zip(copies.names, copies.changes(), strict=True))
    unknown = [name for name, change in changes.items() if math.isnan(change)]
    assert unknown == ["small", "middle"]
    assert changes["scalar"] == 0
    assert changes["large"] == pytest.approx(math.sqrt(120_000), rel=1e-5)
    assert changes["huge"] == 0
    assert not copies.are_of(params)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_parameter_that_became_nan_has_an_infinite_change(is_moved: bool) -> None:
    params = parameters()
    copies = HostCopies(params)
    copies.take()
    params["small"].data[0] = math.nan
    params["large"].data[0] = math.inf
    if is_moved:
        params["middle"].data = torch.zeros(3)
    changes = dict(zip(copies.names, copies.changes(), strict=True))
    assert changes["small"] == changes["large"] == math.inf
    assert math.isnan(changes["middle"]) == is_moved


def test_the_same_memory_serves_the_same_parameters_only() -> None:
    params = parameters()
    copies = HostCopies(params)
    assert copies.are_of(params)
    assert not copies.are_of(dict(reversed(params.items())))
    assert not copies.are_of({**params, "small": nn.Parameter(params["small"].detach().clone())})
    assert not copies.are_of({name: param for name, param in params.items() if name != "huge"})


def test_what_is_copied_one_by_one() -> None:
    others = [torch.zeros(0), torch.zeros(2).half(), torch.zeros(2).double(), torch.zeros(2, device="meta")]
    assert not any(map(can_be_copied, others))
    assert can_be_copied(nn.Parameter(torch.zeros(2)))


def test_updates_hold_their_memory_until_the_steps_are_measured_no_more() -> None:
    params, updates = parameters(), Updates()
    for change in (0.5, 0.25):
        scalars = DeviceScalars()
        updates.begin()
        norms = updates.keep(params, scalars)
        memory = updates._known_rows[0]
        with torch.no_grad():
            params["small"].add_(change)
        updates.measure(scalars)
        numbers = scalars.to_host()
        found = {name: float(numbers[slot]) for name, slot in norms.items()}
        assert found.keys() == params.keys()
        assert float(numbers[updates.changes["small"].norm]) == pytest.approx(change * math.sqrt(7), rel=1e-5)
    assert updates._known_rows == [memory]
    updates.free()
    assert updates._known_rows == []


def test_two_optimizers_and_a_closure_that_is_called_again() -> None:
    params, updates, scalars = parameters(), Updates(), DeviceScalars()
    first = {name: param for name, param in params.items() if name in ("large", "small")}
    updates.keep(first, scalars)
    with torch.no_grad():
        params["small"].add_(1.0)
    assert updates.keep(first, scalars) == {}  # LBFGS: what was kept first counts
    updates.keep(params, scalars)
    with torch.no_grad():
        params["huge"].add_(1.0)
    updates.measure(scalars)
    numbers = scalars.to_host()
    changes = {name: float(numbers[change.norm]) for name, change in updates.changes.items()}
    expected = dict.fromkeys(params, 0.0) | {"small": math.sqrt(7), "huge": math.sqrt(70_001)}
    assert changes == pytest.approx(expected, rel=1e-5)


def test_beyond_the_bound_samples_are_kept_and_the_norms_of_weights_are_read_themselves() -> None:
    params, updates, scalars = parameters(), Updates(bound=1000), DeviceScalars()
    assert updates.keep(params, scalars) == {}
    updates.measure(scalars)
    assert set(updates.changes) == set(params)
    assert np.isfinite(scalars.to_host()).all()
