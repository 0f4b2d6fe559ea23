"""Processes that should hold the same weights: those that drift apart are found, and no others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from ranked_training import in_processes, needs_fsdp2, needs_gloo
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch import watch
from gradwatch.probe.replicas import _the_one, checksums, has_bits, zero_sum_weights


def data(step: int, rank: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(100 * step + rank))


def mlp(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *more, nn.Tanh(), nn.Linear(8, 1))


def trained(
    model: nn.Module,
    rank: int,
    forward: Callable[[int], Any] | None = None,
    after: Callable[[int], object] = lambda step: None,
    steps: int = 6,
) -> Any:
    """Train and watch each step; ``after`` is called between the step and the measuring of the next."""
    torch.manual_seed(rank)  # dropout differs
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    with watch(model, every_n_steps=1, on_finding="warn", on_error="raise") as watcher:
        for step in range(steps):
            optimizer.zero_grad()
            called = model if forward is None else forward(step)
            loss = (called(data(step, rank)) - 0.5).square().mean()
            loss.backward()
            watcher.step(optimizer, loss)
            after(step)
    return watcher


def found(watcher: Any) -> list[Any]:
    everywhere: list[Any] = [None] * distributed.get_world_size()
    findings = [finding for finding in watcher.findings if finding.kind == "out-of-sync"]
    distributed.all_gather_object(everywhere, [finding.to_dict() for finding in findings])
    assert all(each == everywhere[0] for each in everywhere)
    return findings


def write(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] += 0.01


class Odd(nn.Module):
    """Buffers of many types, an empty parameter, frozen and half precision ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 3).t(), requires_grad=False)
        self.coarse = nn.Parameter(torch.randn(3).bfloat16(), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scale", torch.randn(5, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("phase", torch.randn(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return x


def past_ddp(rank: int) -> None:
    """Every second batch goes past DDP."""
    model = DistributedDataParallel(mlp())
    watcher = trained(model, rank, lambda step: model.module if step % 2 else model)
    (finding,) = found(watcher)
    assert (finding.step, finding.severity, len(finding.layers)) == (1, "error", 4)
    assert "replicas differ: 4 tensors are not the same on all processes" in finding.message
    assert set(watcher.history[-1].out_of_sync.values()) == {-1}  # of two, nobody knows who is right


def healthy(rank: int) -> None:
    for broadcast in (True, False):
        torch.manual_seed(0)  # of the buffers
        norm = nn.BatchNorm1d(8)
        model = DistributedDataParallel(mlp(norm, Odd(), nn.Dropout(0.2)), broadcast_buffers=broadcast)
        watcher = trained(model, rank)
        assert found(watcher) == []
        assert [snapshot.out_of_sync for snapshot in watcher.history] == [{}] * 6
        means: list[Any] = [None, None]
        distributed.all_gather_object(means, (norm.running_mean.tolist(), model.module[2].mean.tolist()))
        assert means[0] != means[1]  # so that the silence says something
    odd = model.module[2]

    def change(step: int) -> None:
        if rank and step == 1:
            odd.coarse.data[1] += 0.5
            odd.mask[0] = False

    watcher = trained(model, rank, after=change)
    assert set(watcher.history[-1].out_of_sync) == {"2.coarse"}  # a buffer that changes is nobody's business
    (finding,) = found(trained(model, rank))
    assert finding.layers == ("2.coarse",)  # DDP was told to leave the buffers to each process


def accumulated(rank: int) -> None:
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.AdamW(model.parameters())
    with watch(model, every_n_steps=1) as watcher:
        for step in range(4):
            for micro in range(2):
                with model.no_sync() if micro == 0 else nullcontext():
                    model(data(2 * step + micro, rank)).square().mean().backward()
            watcher.step(optimizer)
            optimizer.zero_grad()
    assert len(watcher.history) == 4
    assert found(watcher) == []


def a_failing_rank(rank: int) -> None:
    """Where one process cannot read its weights, no one is accused, and nobody waits."""
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr("gradwatch.probe.replicas.checksums", lambda tensors: 1 / 0)
        model = DistributedDataParallel(mlp())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, every_n_steps=1, on_error="warn") as watcher:
            for step in range(3):
                optimizer.zero_grad()
                model.module(data(step, rank)).square().mean().backward()
                watcher.step(optimizer)
    assert [snapshot.out_of_sync for snapshot in watcher.history] == [{}] * 3
    assert [failure.part for failure in watcher.out_of_service] == ["the comparison of replicas"] * rank
    model = DistributedDataParallel(mlp(), broadcast_buffers=False)
    model.module.register_buffer(f"only{rank}", torch.ones(rank + 1))
    watcher = trained(model, rank, lambda step: model.module, steps=3)
    assert [snapshot.out_of_sync for snapshot in watcher.history] == [{}] * 3


def tensor_parallel(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        return parallelize_module(
            model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()}
        )

    def train(after: Callable[[int], object]) -> Any:
        return trained(model, 0, after=after)  # both have the same batch

    model = make()
    assert found(train(lambda step: None)) == []
    model = make()
    (finding,) = found(train(lambda step: write(model[3].weight) if rank and step == 1 else None))
    assert "3.weight" in finding.layers
    assert finding.step == 2
    assert "0.weight" not in finding.layers


def fsdp2(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.2))
    for layer in (model[0], model[4], model):
        fully_shard(layer)
    watcher = trained(model, rank)
    assert found(watcher) == []
    assert len(watcher.history) == 6


def two_processes(rank: int) -> None:
    distributed.init_process_group("gloo")
    for check in (past_ddp, healthy, accumulated, a_failing_rank, tensor_parallel):
        check(rank)


def three_processes(rank: int) -> None:
    distributed.init_process_group("gloo")
    model = DistributedDataParallel(mlp())
    watcher = trained(model, rank, after=lambda step: write(model.module[0].weight) if (rank, step) == (2, 1) else None)
    (finding,) = found(watcher)
    assert (finding.layers, finding.step) == (("0.weight",), 2)
    assert finding.message.endswith("0.weight; rank 2 holds other values than the rest.")


def four_processes(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    fsdp2(rank)
    model = mlp(nn.BatchNorm1d(8))
    for layer in (model[0], model[3], model):
        fully_shard(layer, mesh=mesh)
    assert found(trained(model, rank)) == []
    (finding,) = found(
        trained(model, rank, after=lambda step: write(model[0].weight.to_local()) if rank == 3 and step == 1 else None)
    )
    assert (finding.layers, finding.step) == (("0.weight",), 2)


@needs_gloo
def test_two_processes_that_drift_apart_are_found() -> None:
    in_processes(two_processes)


@needs_gloo
def test_of_three_processes_the_one_that_differs_is_named() -> None:
    in_processes(three_processes, world=3)


@needs_gloo
@needs_fsdp2
def test_copies_of_shards_are_compared() -> None:
    in_processes(four_processes, world=4)


@pytest.mark.parametrize("world", [2, 3, 5, 8, 64, 1000])
def test_sums_tell_who_differs(world: int) -> None:
    weights, rng = zero_sum_weights(np.arange(world)[None]), np.random.default_rng(0)
    assert not weights.sum(1).any()
    for rank in range(min(world, 9)):
        sums = np.full(world, 77)
        assert not (weights @ sums).any()
        sums[rank] = rng.integers(1 << 20)
        assert _the_one(weights, *map(int, weights @ sums)) == (rank if world > 2 else -1)
    if world > 3:
        sums[:2] = 5, 9
        assert (weights @ sums).any()
        assert _the_one(weights, *map(int, weights @ sums)) == -1


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_checksum_sees_each_entry_wherever_the_tensor_lies(dtype: torch.dtype, count: int) -> None:
    values = (torch.randn(count + 1) * 3).to(dtype)[1:]  # not at the start of its memory
    (first,) = checksums([values]).tolist()
    assert checksums([values.clone(), values.repeat_interleave(2)[::2]]).tolist() == [first] * 2
    for entry in range(count):
        other = values.clone()
        other[entry] = ~other[entry] if dtype is torch.bool else other[entry] + 1
        assert checksums([other]).tolist() != [first]


def test_what_has_no_bits_is_left_out() -> None:
    odd = [torch.ones(2, device="meta"), nn.UninitializedParameter(), torch.eye(2).to_sparse()]
    assert [has_bits(tensor) for tensor in [torch.ones(2), nn.Parameter(torch.ones(2)), *odd]] == [True] * 2 + [
        False
    ] * 3
