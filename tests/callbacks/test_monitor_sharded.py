"""GradientMonitor in a Trainer whose two processes hold parts of the model: the Snapshots are those of one process."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from small_fits import Regression, fit
from torch import Tensor, nn

from gradwatch import GradientMonitor, GradientTransform
from gradwatch.transforms import ClipByGlobalNorm

sys.path.insert(0, str(Path(__file__).parent.parent / "probe"))
from ranked_training import assert_same, in_processes, needs_fsdp2, needs_gloo

pytestmark = needs_gloo


class Model(Regression):
    """In one process it trains on what two processes get together."""

    def __init__(self) -> None:
        super().__init__(net=net, optimizer=torch.optim.SGD, lr=0.05)

    def ranks(self) -> list[int]:
        return [0, 1] if self.trainer.world_size == 1 else [self.trainer.global_rank]

    def batch(self, index: int) -> Tensor:
        generators = [torch.Generator().manual_seed(2 * index + rank) for rank in self.ranks()]
        return torch.cat([torch.randn(64, 4, generator=generator) for generator in generators])


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))


class Sharded(Model):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in (self.net[0], self.net[2], self.net):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Parallel(Model):
    def ranks(self) -> list[int]:
        return [0, 1]

    def configure_model(self) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


def measured(model: Model, folder: Path, **options: Any) -> tuple[Any, float]:
    monitor = GradientMonitor(
        every_n_steps=3, dense_steps=2, detectors=[], total_norm_every_step=True, summary=False,
        record_path=folder / f"{type(model).__name__}.jsonl",
    )  # fmt: skip
    fit([monitor, GradientTransform(ClipByGlobalNorm(0.5))], model, 7, **options)
    return list(monitor.history), float(model.trainer.callback_metrics["grad_norm_total"])


def strategy(data: int, tensor: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor, process_group_backend="gloo")


KINDS: dict[str, tuple[type[Model], Callable[[], Any]]] = {
    "ddp": (Model, lambda: DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)),
    "fsdp2": (Sharded, lambda: strategy(2, 1)),
    "tensor parallel": (Parallel, lambda: strategy(1, 2)),
}


class Work:
    """What each process does; the results go into a folder."""

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        self.folder, self.kinds = folder, kinds

    def __call__(self, rank: int) -> None:
        results = {}
        for kind in self.kinds:
            model, make = KINDS[kind]
            results[kind] = measured(model(), self.folder, devices=2, strategy=make())
        (self.folder / f"{rank}.pkl").write_bytes(pickle.dumps(results))


@pytest.mark.parametrize("kinds", [["ddp", "tensor parallel"], pytest.param(["fsdp2"], marks=needs_fsdp2)], ids=str)
def test_two_processes_measure_what_one_does(kinds: list[str], tmp_path: Path) -> None:
    in_processes(Work(tmp_path, kinds))
    expected, total = measured(Model(), tmp_path / "alone")
    for rank in range(2):
        for name, (history, metric) in pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()).items():
            assert_same(f"{name} on rank {rank}", history, expected)
            assert metric == pytest.approx(total, rel=1e-4), name
    # One for each fit, though two processes were told to write it.
    assert len(list(tmp_path.glob("*.jsonl"))) == len(kinds)
