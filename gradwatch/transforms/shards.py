"""Gradients that are cut into shards (FSDP2, tensor parallelism: DTensor), and sums over all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

DTensor: Any = None
if torch.distributed.is_available():
    try:
        from torch.distributed.tensor import DTensor, Partial, Replicate
    except ImportError:  # torch 2.4 has it under its first name
        from torch.distributed._tensor import DTensor, Partial, Replicate  # type: ignore[attr-defined]

_PLAIN = (Tensor, nn.Parameter)


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, of which this process may hold a part only."""
    return type(tensor) not in _PLAIN and DTensor is not None and isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; shares memory with it."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def refuse_partial(name: str, grad: Tensor) -> None:
    """Raise a ValueError for a gradient that is not yet summed over the ranks."""
    if is_sharded(grad) and any(placement.is_partial() for placement in grad.placements):  # type: ignore[attr-defined]
        raise ValueError(
            f"the gradient of {name!r} is a DTensor with placements {grad.placements}: "  # type: ignore[attr-defined]
            "it is not yet summed over the ranks; redistribute it before transforms run"
        )


def over_shards(
    rows: Tensor,
    owners: Sequence[Tensor],
    op: Literal["sum", "max"] = "sum",
    dims: Collection[int] | None = None,
) -> Tensor:
    """Combine numbers that each process computed on its shards; they are then the same on all.

    Shapes: ``rows``: one row for each owner; the result has the same shape.

    Args:
        rows: a number, or several, about the local part of each owner.
        owners: the tensors they are about; rows of those that are not sharded stay as they are.
        op: how to combine.
        dims: dimensions of the owners that the rows were reduced over; None stands for all.

    Cost: nothing where no owner is sharded, else one all-reduce for each way of sharding.

    Example:
        >>> over_shards(torch.ones(1), [torch.zeros(3)])
        tensor([1.])
    """
    groups: dict[tuple[Any, tuple[bool, ...]], list[int]] = {}
    for position, owner in enumerate(owners):
        if is_sharded(owner):
            reduced = _reduced_mesh_dims(owner, dims)
            groups.setdefault((owner.device_mesh, reduced), []).append(position)  # type: ignore[attr-defined]
    parts = list(rows.unbind()) if groups else []
    for (mesh, reduced), positions in groups.items():
        placements = [Partial(op) if here else Replicate() for here in reduced]
        mine = torch.stack([parts[i] for i in positions])
        whole = DTensor.from_local(mine, mesh, placements, run_check=False).full_tensor()
        for position, part in zip(positions, whole.unbind(), strict=True):
            parts[position] = part
    return torch.stack(parts) if groups else rows


def _reduced_mesh_dims(owner: Any, dims: Collection[int] | None) -> tuple[bool, ...]:
    return tuple(
        not placement.is_replicate() and (dims is None or placement.dim in dims) for placement in owner.placements
    )


def shard_like(full: Tensor, owner: Tensor) -> Tensor:
    """The part of a full tensor that belongs to this process' part of ``owner``; no communication.

    Example:
        >>> shard_like(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not is_sharded(owner):
        return full
    mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
    whole = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = whole.redistribute(placements=placements).to_local()
    return part


def any_rank(flag: Tensor) -> bool:
    """Whether the flag is set on any rank. Reads it on the host, so this waits for the device."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        flag = flag.to(torch.uint8)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
