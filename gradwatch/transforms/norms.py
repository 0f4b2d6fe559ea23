"""p-norms of many tensors of any kind: mixed devices and dtypes, empty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.probe.norms import l2_norms


def by_kind(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Positions of the tensors, grouped by device and dtype."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(position)
    return list(kinds.values())


def norms_of(tensors: list[Tensor], kinds: Sequence[Sequence[int]], p: float) -> Tensor:
    """The p-norm of each tensor in float64, on the first one's device, given their positions by kind.

    Example:
        >>> norms_of([torch.tensor([3.0, -4.0])], [[0]], p=1)
        tensor([7.], dtype=torch.float64)
    """
    if len(kinds) == 1:
        return _norms_of_one_kind(tensors, p)
    home, norms = tensors[0].device, [tensors[0]] * len(tensors)
    for positions in kinds:
        batch = _norms_of_one_kind([tensors[i] for i in positions], p).to(home, non_blocking=True)
        for position, norm in zip(positions, batch.unbind(), strict=True):
            norms[position] = norm
    return torch.stack(norms)


def _norms_of_one_kind(tensors: list[Tensor], p: float) -> Tensor:
    if p == 2:
        return l2_norms(tensors)
    wide = torch.float64 if tensors[0].device.type != "mps" else torch.float32
    if p == float("inf"):  # the fused norm refuses an empty shard and is slow on a CPU
        return torch.stack([_largest(values) for values in tensors]).to(wide)
    return torch.stack(torch._foreach_norm(tensors, p, dtype=wide))


def _largest(values: Tensor) -> Tensor:
    if values.numel() == 0:
        return values.new_zeros(())
    low, high = torch.aminmax(values)
    return torch.maximum(high, -low)
