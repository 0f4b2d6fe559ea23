"""DDP and FSDP2 on two gloo processes train to the weights of one process that has both batches."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from small_fits import Regression, fit, weights
from torch import Tensor, nn

from gradwatch.callbacks.layerwise import LayerwiseTraining, Stage
from gradwatch.callbacks.transform import GradientTransform

sys.path.insert(0, str(Path(__file__).parent.parent / "probe"))
from ranked_training import needs_fsdp2, needs_gloo

TRANSFORMS = Path(__file__).parent.parent / "transforms"
STEPS = 4

pytestmark = needs_gloo


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


class Model(Regression):
    """In one process it trains on what two processes get together."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(net=net, optimizer=torch.optim.SGD, lr=0.05, **settings)

    def batch(self, index: int) -> Tensor:
        ranks = range(2) if self.trainer.world_size == 1 else [self.trainer.global_rank]
        generators = [torch.Generator().manual_seed(2 * index + rank) for rank in ranks]
        return torch.cat([torch.randn(8, 4, generator=generator) * 5 for generator in generators])


class Sharded(Model):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def callbacks() -> dict[str, Any]:
    """A callback for every exported transform but ``When``, which needs a monitor."""
    sys.path.insert(0, str(TRANSFORMS))
    from every_transform import FACTORIES

    return {name: GradientTransform(make()) for name, make in FACTORIES.items() if name != "When"}


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in weights(model).items()}


def stages() -> LayerwiseTraining:
    return LayerwiseTraining([Stage(["net.4"]), Stage(["net.0"], 2), Stage(["*"])])


def _begin(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0"}


def _with_ddp(rank: int, port: int, folder: Path) -> None:
    _begin(rank, port)
    results = {}
    for name, callback in callbacks().items():
        results[name] = full_weights(fit(callback, Model(), STEPS, devices=2, strategy="ddp"))
    unused = "ddp_find_unused_parameters_true"
    results["stages"] = full_weights(fit(stages(), Model(), 35, devices=2, strategy=unused))
    with pytest.raises(ValueError, match="expected strategy='ddp_find_unused_parameters_true'"):
        fit(stages(), Model(), 35, devices=2, strategy="ddp")
    torch.save(results, folder / f"{rank}.pt")


def _with_fsdp2(rank: int, port: int, folder: Path) -> None:
    _begin(rank, port)
    results = {}
    for name, callback in callbacks().items():
        results[name] = full_weights(fit(callback, Sharded(), STEPS, devices=2, strategy=_fsdp2()))
    results["stages"] = full_weights(fit(stages(), Sharded(), 35, devices=2, strategy=_fsdp2()))
    torch.save(results, folder / f"{rank}.pt")


def _fsdp2() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")


@pytest.mark.parametrize("work", [_with_ddp, pytest.param(_with_fsdp2, marks=needs_fsdp2)])
def test_two_processes_end_where_one_does(work: Callable[[int, int, Path], None], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(ranks[0], ranks[1], rtol=0, atol=0)
    expected = {name: weights(fit(callback, Model(), STEPS)) for name, callback in callbacks().items()}
    expected["stages"] = weights(fit(stages(), Model(), 35))
    for name, got in ranks[0].items():
        torch.testing.assert_close(
            got, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
