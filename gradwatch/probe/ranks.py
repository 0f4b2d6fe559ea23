"""The processes that train one model together, and how much of a sum over all of them each one holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from gradwatch.probe.shards import is_sharded, part_count


@dataclass(frozen=True)
class Ranks:
    """The processes that train a model together.

    Each one that holds a batch of its own computes the loss of that batch; the gradients of the parameters are averaged
    over them. So the loss of all batches together is the mean of theirs, and the gradient of *that* loss at a layer's
    output is what the process sees, divided by the number of batches.

    Attributes:
        world: how many processes.
        batches: how many batches there are, one a process, or one for several (tensor parallelism).
        place: of this process among those that share its batch.
        pieces: how many pieces FSDP1 cuts a parameter into.
        group: what they talk over; None for the group of all processes.

    Example:
        >>> Ranks(world=4, batches=4).share(torch.zeros(2))
        0.25
    """

    world: int
    batches: int
    place: int = 0
    pieces: int = 1
    group: Any = None

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # a process group can't be copied

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return dist.get_rank(self.group) == 0

    @property
    def sharing(self) -> int:
        """How many processes share a batch."""
        return self.world // self.batches

    def share(self, tensor: Tensor) -> float:
        """What the entries held here count in a sum over all processes, so that each one counts once."""
        pieces = self.pieces if is_flat_piece(tensor) else part_count(tensor)
        return pieces / self.world

    def is_cut(self, param: Tensor) -> bool:
        """Whether this process holds only a part of a parameter."""
        return is_sharded(param) or (is_flat_piece(param) and self.pieces > 1)

    def add_up(self, row: Tensor) -> Tensor:
        """The sum over all processes, in place. Every one of them has to call this."""
        dist.all_reduce(row, group=self.group)
        return row

    def largest(self, row: Tensor) -> Tensor:
        """The maximum over all processes, in place. Every one of them has to call this."""
        dist.all_reduce(row, dist.ReduceOp.MAX, group=self.group)
        return row

    def device(self, params: Iterable[Tensor]) -> torch.device:
        """Where numbers are added up: the parameters' device, if the processes can talk from there."""
        home = next((param.device for param in params), torch.device("cpu"))
        on_gpu_only = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu_only and home.type != "cuda" else home


def is_flat_piece(tensor: Tensor) -> bool:
    """Whether a parameter is a piece of one of FSDP1's flat parameters."""
    return bool(getattr(tensor, "_fsdp_flattened", False))
