"""The processes that train one model together, and the share of each in a sum over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradwatch.containment import UnsupportedError
from gradwatch.probe.deepspeed import refuse_deepspeed
from gradwatch.probe.layers import named_modules, named_parameters
from gradwatch.probe.shards import is_sharded, part_count
from gradwatch.torch_internals import fsdp2_class, is_flat_piece


@dataclass(frozen=True)
class Ranks:
    """The processes that train a model together.

    Each process computes the loss of its batch, and the gradients of the parameters are averaged over the processes.
    So the loss of all batches is the mean of theirs. The gradient of *that* loss at a layer's output is the gradient
    that the process sees, divided by the number of batches.

    Attributes:
        world: number of processes.
        batches: number of batches: one a process, or one for several (tensor parallelism).
        place: of this process among those that share its batch.
        pieces: number of pieces that FSDP1 cuts a parameter into.
        same_buffers: buffers should be the same on all: not where DDP is told not to broadcast them.
        group: the process group of their collectives; None for the group of all processes.

    Example:
        >>> Ranks(world=4, batches=4).share(torch.zeros(2))
        0.25
    """

    world: int
    batches: int
    place: int = 0
    pieces: int = 1
    same_buffers: bool = True
    group: Any = None

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # a process group can't be copied

    @property
    def is_first(self) -> bool:
        """Return True for the one process that warns for all."""
        return dist.get_rank(self.group) == 0

    @property
    def sharing(self) -> int:
        """Return the number of processes that share a batch."""
        return self.world // self.batches

    def share(self, tensor: Tensor) -> float:
        """Return the weight of the entries held here in a sum over all processes, so that each entry counts once."""
        # With 4 processes, a tensor in 2 parts has 2 copies of each part, and each copy counts 2 / 4.
        return (self.pieces if is_flat_piece(tensor) else part_count(tensor)) / self.world

    def is_cut(self, param: Tensor) -> bool:
        """Return True if this process holds only a part of a parameter."""
        return is_sharded(param) or (is_flat_piece(param) and self.pieces > 1)

    def add_up(self, row: Tensor) -> Tensor:
        """Sum over all processes, in place. Every process has to call this."""
        dist.all_reduce(row, group=self.group)
        return row

    def largest(self, row: Tensor) -> Tensor:
        """Take the maximum over all processes, in place. Every process has to call this."""
        dist.all_reduce(row, dist.ReduceOp.MAX, group=self.group)
        return row

    def device(self, params: Iterable[Tensor]) -> torch.device:
        """Return the device on which numbers are added up: the parameters', if the backend supports it."""
        home = next((param.device for param in params), torch.device("cpu"))
        on_gpu_only = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu_only and home.type != "cuda" else home


def find_ranks(model: nn.Module) -> Ranks | None:
    """Return the processes of a model that is wrapped in DDP or FSDP, or has DTensors as parameters; else None.

    Raises:
        UnsupportedError: (a NotImplementedError) where parameters are sharded in a way that is not supported.
        SettingError: (a ValueError) for a model of DeepSpeed, which may be in a wrapper that nobody else looks at.
    """
    refuse_deepspeed(model)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    cut = _cut_by_fsdp(model) or _cut_by_mesh(model)
    wrapper = next((m for _, m in named_modules(model) if isinstance(m, DistributedDataParallel)), None)
    if cut is not None or wrapper is None:
        return cut
    group: Any = wrapper.process_group
    kept: dict[str, Any] = {"group": _unless_all(group), "same_buffers": wrapper.broadcast_buffers}
    return Ranks(group.size(), group.size(), **kept) if group.size() > 1 else None


def _unless_all(group: Any) -> Any:
    return None if group.size() == dist.get_world_size() else group


def _cut_by_fsdp(model: nn.Module) -> Ranks | None:
    """Return the processes of FSDP1, which joins parameters into a flat one and cuts that into pieces."""
    from torch.distributed.fsdp import FlatParameter, FullyShardedDataParallel, ShardingStrategy

    wrapped = [module for _, module in named_modules(model) if isinstance(module, FullyShardedDataParallel)]
    if not wrapped:
        return None
    if any(isinstance(p, FlatParameter) or is_sharded(p) for _, p, _ in named_parameters(model)):
        raise UnsupportedError(
            "FSDP(use_orig_params=False), or FSDP with tensor parallelism, joins parameters into one; "
            "expected FSDP(use_orig_params=True), or FSDP2 (ModelParallelStrategy with fully_shard)"
        )
    strategies = {module.sharding_strategy for module in wrapped}
    groups = {module.process_group for module in wrapped}
    if len(strategies) > 1 or len(groups) > 1:
        raise UnsupportedError(
            f"FSDP wrappers of several kinds ({len(groups)} process groups, {sorted(s.name for s in strategies)}) are "
            "not supported; expected one sharding strategy for all, or FSDP2 (ModelParallelStrategy with fully_shard)"
        )
    strategy, group = strategies.pop(), cast(Any, groups.pop())
    hybrid = strategy.name.startswith("HYBRID")
    world = dist.get_world_size() if hybrid else group.size()
    pieces = 1 if strategy is ShardingStrategy.NO_SHARD else group.size()
    return Ranks(world, world, pieces=pieces, group=None if hybrid else _unless_all(group)) if world > 1 else None


def _cut_by_mesh(model: nn.Module) -> Ranks | None:
    """Return the processes of FSDP2 and of tensor parallelism, whose parameters are DTensors."""
    wrapped = [module for _, module in named_modules(model) if isinstance(module, fsdp2_class())]
    managed = {id(param) for module in wrapped for _, param, _ in named_parameters(module)}
    cut: list[Any] = [param for _, param, _ in named_parameters(model) if is_sharded(param)]
    splits = {(param.device_mesh, _batch_dims(param) if id(param) in managed else 0) for param in cut}
    if not splits:
        return None
    # FSDP2's parameters may lie on a part of the mesh (the batches), tensor parallelism's on all of it. The parameter
    # with most processes a batch shows how the mesh is split.
    mesh, dims = max(splits, key=lambda split: math.prod(split[0].shape[split[1] :]))
    sharing = math.prod(mesh.shape[dims:])
    group = mesh.get_group() if len(splits) == 1 and mesh.ndim == dims == 1 else None
    world = dist.get_world_size(group)
    batches = {math.prod(other.shape[:by]) for other, by in splits if by} or {world // sharing}
    if batches != {world // sharing} or world % sharing or mesh.get_coordinate() is None:
        raise UnsupportedError(
            f"the parameters are spread over {sorted(str(other) for other, _ in splits)}, which do not make up the "
            f"{world} processes as batches times tensor parallelism; expected every process to hold a part of all"
        )
    place = np.ravel_multi_index(mesh.get_coordinate()[dims:], mesh.shape[dims:]) if sharing > 1 else 0
    return Ranks(world, world // sharing, place=int(place), group=None if group is None else _unless_all(group))


def _batch_dims(param: Any) -> int:
    """Return how many of the mesh's first dimensions hold different batches: up to the one that FSDP2 shards by."""
    cut = [not placement.is_replicate() for placement in param.placements]
    return cut.index(True) + 1 if any(cut) else len(cut)
