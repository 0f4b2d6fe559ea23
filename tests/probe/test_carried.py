"""A gradient counts as carried over only where that is certain, in every process, and nothing is held for it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from ranked_training import batch, in_processes, needs_fsdp2, needs_gloo
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from gradwatch import Snapshot, Watcher, watch
from gradwatch.probe.carried import CarriedGradients
from gradwatch.probe.hooks import CARRIED
from gradwatch.probe.scalars import DeviceScalars

NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(model: nn.Module, clear: bool | None = None, rank: int = 0, **options: Any) -> Watcher:
    """Train, where ``clear`` is ``set_to_none``, or None for a loop that never clears."""
    optimizer = SGD(model.parameters(), lr=1e-3)
    with watch(model, detectors=[], **options) as watcher:
        for step in range(4):
            if clear is not None:
                optimizer.zero_grad(set_to_none=clear)
            loss = model(batch(step, (rank,))).square().mean()
            loss.backward()
            watcher.step(optimizer, loss)
    return watcher


def looked_at(param: nn.Parameter, loss: Tensor) -> bool | None:
    """Return True if the gradient is carried over by the loss's backward pass; None if that can't be told."""
    carried, scalars = CarriedGradients(), DeviceScalars()
    carried.begin([param])
    output = loss * 1
    output.register_hook(lambda grad: carried.look(scalars))
    output.backward()
    slots = carried.among({"param": param})
    return not scalars.to_host()[slots["param"]].any() if slots else None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (0.0, False), (float("nan"), True), (1e-30, True)])
def test_gradients_of_every_type_are_told_from_zeros(dtype: torch.dtype, value: float, expected: bool) -> None:
    param = nn.Parameter(torch.ones(3, dtype=dtype))
    param.grad = torch.full_like(param, value)
    is_zero = dtype is torch.float16 and value == 1e-30
    assert looked_at(param, param.abs().sum().float()) is (expected and not is_zero)


def test_a_parameter_of_another_loss_is_left_alone() -> None:
    param, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
    param.grad = torch.ones(3)
    assert looked_at(param, other.sum()) is None
    assert looked_at(param.requires_grad_(False), other.sum()) is None


def test_an_old_gradient_is_not_held_when_the_program_drops_it() -> None:
    model, carried = small(), CarriedGradients()
    model(batch(0, (0,))).sum().backward()
    carried.begin(model.parameters())
    grads = [weakref.ref(param.grad) for param in model.parameters()]
    model.zero_grad()
    assert [grad() for grad in grads] == [None] * 4


def test_nothing_is_held_after_the_end() -> None:
    model = small()
    watcher = train(model, every_n_steps=1)
    assert [snapshot.carried_over for snapshot in watcher.history] == [(), NAMES, NAMES, NAMES]
    held = weakref.ref(model[0].weight)
    del model
    assert held() is None or not watcher._probe._hooks.carried._used


def test_an_error_switches_off_this_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such gradient")

    monkeypatch.setattr(CarriedGradients, "look", fail)
    with pytest.warns(UserWarning, match="no such gradient"):
        watcher = train(small(), every_n_steps=1, on_error="warn")
    assert [failure.part for failure in watcher.out_of_service] == [CARRIED]
    assert [snapshot.carried_over for snapshot in watcher.history] == [()] * 4
    assert all(snapshot.total_norm > 0 for snapshot in watcher.history)


def test_a_snapshot_keeps_the_names_in_a_record() -> None:
    snapshot = Snapshot(1, (), params=NAMES, carried_over=NAMES[:2])
    assert Snapshot.from_dict(snapshot.to_dict()).carried_over == NAMES[:2]


def begin_group(rank: int) -> None:
    distributed.init_process_group("gloo", rank=rank, world_size=2)


def work_with_ddp(rank: int) -> None:
    begin_group(rank)
    for as_view in (False, True):
        for clear in (None, True, False):
            model = DistributedDataParallel(small(), gradient_as_bucket_view=as_view)
            names = [snapshot.carried_over for snapshot in train(model, clear, rank, every_n_steps=1).history]
            both: list[Any] = [None, None]
            distributed.all_gather_object(both, names)
            assert both[0] == both[1]
            # In the second step DDP builds its buckets anew, and all gradients that are views of them.
            known = 2 if as_view else 1
            assert names[:known] == [()] * known
            assert names[known:] == [() if clear is not None else NAMES] * (4 - known), (as_view, clear, names)


@needs_gloo
def test_all_processes_of_ddp_find_the_same() -> None:
    in_processes(work_with_ddp)


def work_with_fsdp2(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    begin_group(rank)
    for clear in (None, True, False):
        model = fully_shard(small(), mesh=init_device_mesh("cpu", (2,)))
        assert [snapshot.carried_over for snapshot in train(model, clear, rank, every_n_steps=1).history] == [()] * 4


@needs_gloo
@needs_fsdp2
def test_nothing_is_known_of_sharded_gradients() -> None:
    in_processes(work_with_fsdp2)


def test_nothing_is_known_of_compiled_layers() -> None:
    model = torch.compile(small(), backend="eager")
    with pytest.warns(UserWarning, match="compile"):
        watcher = train(model, every_n_steps=1)
    assert {snapshot.carried_over for snapshot in watcher.history} == {()}
