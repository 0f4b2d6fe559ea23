"""Two processes in a plain loop: whatever wraps or cuts up the model, the Snapshots are those of one process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from ranked_training import Net, Sequence, assert_same, batch, in_processes, needs_fsdp2, needs_gloo, train
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch import Finding, GradientWarning, Snapshot, watch
from gradwatch.metrics import GradientNorm
from gradwatch.probe.ranks import find_ranks

pytestmark = needs_gloo


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in (model.first, model.second, model.cell, model.head):
        fully_shard(layer)
    return fully_shard(model)


def fsdp1(model: nn.Module, use_orig_params: bool = True, strategy: str = "FULL_SHARD") -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(
            model, auto_wrap_policy=ModuleWrapPolicy({nn.Linear}), use_orig_params=use_orig_params,
            device_id=torch.device("cpu"), sharding_strategy=ShardingStrategy[strategy],
        )  # fmt: skip


def tensor_parallel(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
    return parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def sequence_parallel(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    try:
        from torch.distributed.tensor import Replicate, Shard
    except ImportError:  # torch 2.4 has them under their first name
        from torch.distributed._tensor import Replicate, Shard

    plan = {
        "0": ColwiseParallel(), "2": RowwiseParallel(output_layouts=Shard(0)), "4": SequenceParallel(sequence_dim=0),
        "5": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    }  # fmt: skip
    return parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def check(name: str, make: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module], ranks, clip=None) -> None:
    got, expected = train(wrap(make()), ranks, clip=clip), train(make(), (0, 1), clip=clip)
    assert_same(name, got.history, expected.history)
    dead = [snapshot.dead_fraction for snapshot in got.history]
    assert 0 < np.nanmax(dead) < 1  # so that the comparison says something


def every_strategy(rank: int) -> None:
    mine, wide = (rank,), lambda: Net(8)  # torch's tensor parallelism wants even parts of activations
    check("DDP", Net, ddp, mine)
    check("FSDP1, clipped before", Net, fsdp1, mine)
    check("FSDP1 without shards", Net, lambda model: fsdp1(model, strategy="NO_SHARD"), mine)
    check("tensor parallel", wide, tensor_parallel, (0, 1))
    check("sequence parallel", Sequence, sequence_parallel, (0, 1))


def sharded_by_fsdp2(rank: int) -> None:
    check("FSDP2, clipped", Net, fsdp2, (rank,), clip=0.05)


def one_collective_a_step(rank: int) -> None:
    from torch.distributed.tensor.debug import CommDebugMode

    sys.modules["gradwatch.pipeline.contained"].past_dispatch_modes = nullcontext  # the counting mode has to see
    model, whole = fsdp2(Net()), Net()
    optimizer, collectives = torch.optim.SGD(model.parameters(), lr=0.05), []
    with watch(model, every_n_steps=3, dense_steps=2, detectors=[]) as watcher:
        for step in range(5):
            model(batch(step, (rank,))).square().mean().backward()
            with CommDebugMode() as seen:
                watcher.step(optimizer)
            collectives.append(seen.get_total_counts())
    assert collectives[1:] == [1, 0, 1, 0]  # before the first step the ranks also agree on the layout
    whole(batch(0, (0, 1))).square().mean().backward()
    model, metric = fsdp2(Net()), GradientNorm()
    model(batch(0, (rank,))).square().mean().backward()
    assert metric(model).item() == pytest.approx(GradientNorm()(whole).item(), rel=1e-4)


def same_on_all(snapshots: list[Snapshot]) -> bool:
    seen: list[list[str]] = [[], []]
    distributed.all_gather_object(seen, [repr(snapshot) for snapshot in snapshots])
    return seen[0] == seen[1] != []


def ranks_decide_alike(rank: int) -> None:
    """Only rank 1 calls the cell often, which is a finding, which makes the next step a measured one."""

    def many(snapshot: Snapshot) -> Finding | None:
        calls = len(snapshot.calls.get("cell", ()))
        return Finding("many", ("cell",), snapshot.step, calls, 3, "many") if calls > 3 else None

    class Many:
        """Stands for one of gradwatch's own, which decide alike on all ranks; one of the user's decides nothing."""

        __module__ = "gradwatch.detectors.many"
        __call__ = staticmethod(many)

    model = ddp(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = {"every_n_steps": 4, "dense_steps": 0, "detectors": [Many()], "on_finding": "stop"}
    with watch(model, **options) as watcher, warnings.catch_warnings(record=True) as caught:
        for step in range(6):
            model(batch(step, (rank,)), (1, 5)[rank] + step).square().mean().backward()
            watcher.step(optimizer)
    assert [snapshot.step for snapshot in watcher.history] == [0, 1, 4]
    # At step 4 there is room for the 8 calls that all ranks had agreed on; the ninth is missing.
    assert [len(snapshot.calls["cell"]) for snapshot in watcher.history] == [5, 6, 8]
    assert same_on_all(watcher.history)
    assert watcher.should_stop
    assert len([warning for warning in caught if warning.category is GradientWarning]) == (rank == 0)


def nobody_waits_for_a_rank_without_a_batch(rank: int) -> None:
    """At step 2 rank 1 has no batch, at step 3 no rank has one."""
    model = DistributedDataParallel(Net(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, detectors=[]) as watcher, model.no_sync():
        for step in range(5):
            optimizer.zero_grad()
            loss = model(batch(0, (0,))).square().mean() if step < 2 + (rank == 0) or step == 4 else None
            if loss is not None:
                loss.backward()
            watcher.step(optimizer, torch.tensor(7.0) if step == 3 else loss)
    both, _, one, none, later = watcher.history
    assert [snapshot.step for snapshot in watcher.history] == [0, 1, 2, 3, 4]
    assert same_on_all(watcher.history)
    assert one.loss == pytest.approx(both.loss)
    assert none.loss == pytest.approx(7.0)
    assert np.isnan(none.param_grad_norm).all()
    assert later.trace_step.tolist() == [4]
    np.testing.assert_allclose(one.grad_output_norm * 2**0.5, both.grad_output_norm, 1e-5)
    np.testing.assert_allclose(one.gain, both.gain, 1e-5)


class FailsOnOne:
    """Stands for a part of the probe that works on the first rank and fails on the second from a call on."""

    def __init__(self, rank: int, works: Callable[..., Any], calls: int) -> None:
        self.rank, self.works, self.calls = rank, works, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.rank and self.calls < 0:
            raise RuntimeError("only here")
        return self.works(*args, **kwargs)


def watched_losses(rank: int, model: nn.Module, **options: Any) -> tuple[list[float], Any]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    with watch(model, every_n_steps=1, on_error="warn", **options) as watcher:
        for step in range(5):
            loss = model(batch(step, (rank,))).square().mean()
            loss.backward()
            watcher.step(optimizer, loss)
            losses.append(loss.item())
    return losses, watcher


def a_failure_on_one_rank_stops_no_other(rank: int) -> None:
    expected, _ = watched_losses(rank, ddp(Net()))
    hooks, probe = sys.modules["gradwatch.probe.hooks"], sys.modules["gradwatch.probe.probe"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True):
        patch.setattr(hooks, "saturated_share", FailsOnOne(rank, hooks.saturated_share, calls=2))
        losses, watcher = watched_losses(rank, ddp(Net()))
    assert losses == expected
    seen = {s.step: s.output_rms[s.layers.index("tanh")] for s in watcher.history}
    assert [np.isnan(value) for value in seen.values()] == [False, False, True, True, True]
    assert same_on_all(watcher.history)
    assert [failure.part for failure in watcher.out_of_service] == ["layer tanh"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True):
        patch.setattr(probe, "ParameterReading", FailsOnOne(rank, probe.ParameterReading, calls=3))
        losses, watcher = watched_losses(rank, ddp(Net()))
    assert losses == expected
    assert [snapshot.step for snapshot in watcher.history] == [0, 1, 2]
    assert [failure.part for failure in watcher.out_of_service] == ["the measured steps"]
    with warnings.catch_warnings(record=True):
        losses, watcher = watched_losses(rank, ddp(Net()), detectors=[FailsOnOne(rank, nothing, calls=1), only_first])
    assert losses == expected
    assert [str(failure)[:44] for failure in watcher.out_of_service] == ["detector 0 FailsOnOne: not watched since ste"]
    assert [snapshot.step for snapshot in watcher.history] == [0, 1, 2, 3, 4]
    different = ddp(nn.Sequential(nn.Linear(4, 2), nn.Tanh() if rank else nn.Sequential(nn.Tanh())))
    with warnings.catch_warnings(record=True):
        assert not watched_losses(rank, different)[1].history


def nothing(snapshot: Snapshot) -> None:
    """Find nothing."""


def only_first(snapshot: Snapshot) -> Finding | None:
    """Decide on one rank only, as no detector should."""
    return Finding("first", ("tanh",), snapshot.step, 1.0, 0.0, "first") if distributed.get_rank() == 0 else None


def what_cannot_be_right_is_refused(rank: int) -> None:
    other = ddp(nn.Sequential(nn.Linear(4, 2), nn.Tanh() if rank else nn.Sequential(nn.Tanh())))
    with pytest.raises(ValueError, match="expected the same model on all of them"):
        train(other, (rank,), steps=1)
    with pytest.raises(NotImplementedError, match=r"expected FSDP\(use_orig_params=True\)"):
        find_ranks(fsdp1(Net(), use_orig_params=False))
    piece = fsdp1(Net())
    piece(batch(0, (rank,))).square().mean().backward()
    with pytest.raises(NotImplementedError, match="pieces of FSDP's flat ones"):
        GradientNorm().update(piece)
    assert find_ranks(Net()) is None  # such a model trains alone, in whatever company


def work(rank: int) -> None:
    distributed.init_process_group("gloo")
    for check_on in (
        every_strategy,
        ranks_decide_alike,
        nobody_waits_for_a_rank_without_a_batch,
        a_failure_on_one_rank_stops_no_other,
        what_cannot_be_right_is_refused,
    ):
        check_on(rank)


def work_with_fsdp2(rank: int) -> None:
    distributed.init_process_group("gloo")
    sharded_by_fsdp2(rank)
    one_collective_a_step(rank)


def test_snapshots_of_two_processes_are_those_of_one() -> None:
    in_processes(work)


@needs_fsdp2
def test_snapshots_of_two_processes_with_fsdp2_are_those_of_one() -> None:
    in_processes(work_with_fsdp2)
