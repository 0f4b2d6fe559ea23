"""Sharded gradients (DTensor, 2 processes) give the results of one process, for every transform."""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)
STEPS = 4


def _dtensors() -> Any:
    """The module that has them: torch 2.4 keeps them under their first name."""
    module = import_module("torch.distributed.tensor")
    return module if hasattr(module, "DTensor") else import_module("torch.distributed._tensor")


def _single(name: str) -> list[dict[str, Tensor]]:
    from every_transform import CONTEXT, FACTORIES, network, set_gradients

    transform, results = FACTORIES[name](), []
    for step in range(STEPS):
        params = set_gradients(network(), step, scale=100.0 if step == 3 else 1.0)
        transform(params, CONTEXT)
        results.append({key: param.grad for key, param in params.items() if param.grad is not None})
    return results


def _sharded(name: str, dim: int) -> list[dict[str, Tensor]]:
    from every_transform import CONTEXT, FACTORIES, network, set_gradients
    from torch.distributed.device_mesh import init_device_mesh

    dtensors = _dtensors()
    mesh, transform, results = init_device_mesh("cpu", (2,)), FACTORIES[name](), []
    for step in range(STEPS):
        params = {}
        for key, param in set_gradients(network(), step, scale=100.0 if step == 3 else 1.0).items():
            plain = key == "linear.bias"  # some stay whole, as FSDP2 does with ignored parameters
            placements = [dtensors.Shard(min(dim, param.ndim - 1)) if param.ndim else dtensors.Replicate()]
            params[key] = param if plain else nn.Parameter(dtensors.distribute_tensor(param.detach(), mesh, placements))
            if param.grad is not None and not plain:
                params[key].grad = dtensors.distribute_tensor(param.grad, mesh, placements)
        outcome = transform(params, CONTEXT)
        if outcome is not None and outcome.clipped is not None:
            both = [torch.zeros_like(outcome.clipped) for _ in range(2)]
            torch.distributed.all_gather(both, outcome.clipped)
            assert both[0] == both[1], f"{name}: the ranks disagree on what was clipped"
        grads = {key: param.grad for key, param in params.items() if param.grad is not None}
        results.append({key: g.full_tensor() if hasattr(g, "full_tensor") else g for key, g in grads.items()})
    return results


def _compare(name: str, dim: int) -> None:
    for mine, expected in zip(_sharded(name, dim), _single(name), strict=True):
        torch.testing.assert_close(
            mine, expected, rtol=1e-5, atol=1e-7, msg=lambda text: f"{name}, Shard({dim}): {text}"
        )


def _ranks_skip_together(rank: int) -> None:
    from every_transform import network, set_gradients

    from gradwatch.transforms import SkipNonFinite

    skip = SkipNonFinite()
    params = set_gradients(network())
    if rank == 1:
        params["conv.weight"].grad[0, 0, 0, 0] = float("nan")
    outcome = skip(params)
    assert outcome is not None
    assert outcome.skipped
    assert all(param.grad is None for param in params.values())
    assert skip(dict(nn.Linear(1, 1).named_parameters())) is None  # a rank without gradients takes part


def _partial_gradients_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    from gradwatch.transforms import ClipByGlobalNorm

    dtensors, mesh = _dtensors(), init_device_mesh("cpu", (2,))
    weight = nn.Parameter(dtensors.DTensor.from_local(torch.ones(2), mesh, [dtensors.Replicate()]))
    weight.grad = dtensors.DTensor.from_local(torch.ones(2), mesh, [dtensors.Partial()])
    with pytest.raises(ValueError, match="not yet summed over the ranks"):
        ClipByGlobalNorm(1.0)({"weight": weight})


def _work(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    from every_transform import FACTORIES

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    for name in FACTORIES:
        for dim in (0, 1):
            _compare(name, dim)
    _ranks_skip_together(rank)
    _partial_gradients_are_refused()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_sharded_results_equal_single_process_ones() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_work, (port,), nprocs=2)
