"""Sharded gradients (DTensors of FSDP2 and tensor parallelism), and sums over all shards."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradwatch.torch_internals import dtensor_class

DTensor, Partial, Replicate = map(dtensor_class, ("DTensor", "Partial", "Replicate"))

_PLAIN = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Return True for a DTensor, of which this process may hold only a part."""
    return type(tensor) not in _PLAIN and DTensor is not None and isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; shares memory with it."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_partial(tensor: Any) -> bool:
    """Return True if the tensor is the sum of what the processes hold, and that sum was not computed yet."""
    return is_sharded(tensor) and any(placement.is_partial() for placement in tensor.placements)


def summed(tensor: Any) -> Any:
    """Return the tensor, summed over the processes if that was not done yet; costs a collective then."""
    if not is_partial(tensor):
        return tensor
    placements = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
    return tensor.redistribute(placements=placements)


def part_count(tensor: Any) -> int:
    """Return the number of different parts a tensor is cut into; the other processes hold copies of them."""
    if not is_sharded(tensor):
        return 1
    cut = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in cut if not placement.is_replicate())


def over_shards(
    rows: Tensor, owners: Sequence[Tensor], op: Literal["sum", "max"] = "sum", dims: Collection[int] | None = None
) -> Tensor:
    """Combine numbers that each process computed on its shards; the result is the same on all.

    Shapes: ``rows``: one row for each owner; the result has the same shape.

    Args:
        rows: a number, or several, about the local part of each owner.
        owners: the tensors they are about; rows of those that are not sharded stay as they are.
        op: how to combine.
        dims: dimensions of the owners that the rows were reduced over; None means all.

    Cost: nothing where no owner is sharded, else one all-reduce for each way of sharding.
    """
    groups: dict[tuple[Any, tuple[bool, ...]], list[int]] = {}
    sharded: list[tuple[int, Any]] = [(i, owner) for i, owner in enumerate(owners) if is_sharded(owner)]
    for position, owner in sharded:
        reduced = tuple(not p.is_replicate() and (dims is None or p.dim in dims) for p in owner.placements)
        groups.setdefault((owner.device_mesh, reduced), []).append(position)
    parts = list(rows.unbind()) if groups else []
    for (mesh, reduced), positions in groups.items():
        placements = [Partial(op) if here else Replicate() for here in reduced]
        mine = torch.stack([parts[i] for i in positions])
        whole = DTensor.from_local(mine, mesh, placements, run_check=False).full_tensor()
        for position, part in zip(positions, whole.unbind(), strict=True):
            parts[position] = part
    return torch.stack(parts) if groups else rows


def norms_over_shards(norms: Tensor, owners: Sequence[Tensor], p: float = 2.0) -> Tensor:
    """Return the p-norms of whole tensors, from those of the shards that this process holds."""
    if not any(map(is_sharded, owners)):
        return norms
    if p == float("inf"):
        return over_shards(norms, owners, "max")
    return over_shards(norms**p, owners) ** (1 / p)


def shard_like(full: Tensor, owner: Tensor) -> Tensor:
    """Return the part of a full tensor that belongs to this process's part of ``owner``; no communication."""
    if not is_sharded(owner):
        return full
    mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
    whole = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = whole.redistribute(placements=placements).to_local()
    return part


def any_rank(flag: Tensor) -> bool:
    """Return True if the flag is set on any rank. Reads it on the host, so this waits for the device."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        flag = flag.to(torch.uint8)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
