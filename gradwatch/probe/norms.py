"""Norms and counts of many tensors at once: fused, safe against overflow and underflow, left on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from gradwatch.probe.host_norms import flat_array, is_on_host, norm_of, norms_and_zeros, norms_of_all
from gradwatch.probe.shards import is_sharded, local_part
from gradwatch.torch_internals import foreach_div, foreach_mul, foreach_norm

Batch = tuple[list[int], list[Tensor]]  # positions, and tensors of one kind


def stored_values(tensor: Tensor) -> Tensor:
    """Return the entries a process stores, as a real strided tensor of the same L2 norm, without a graph."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if is_plain(tensor) else _stored(local_part(tensor))


def is_plain(tensor: Tensor) -> bool:
    """Return True if a tensor stores all its entries in this process, as real numbers that torch computes with."""
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.itemsize == 1:
        return False
    return not (is_sharded(tensor) or tensor.is_nested)


def is_readable(tensor: Tensor) -> bool:
    """Return True if a tensor holds floating or complex numbers that this process can read.

    Meta tensors hold none, quantized ones hold codes, and a subclass with its own ``__torch_dispatch__`` may hold
    anything: of these only torch's sharded, nested and still communicating tensors count as readable.

    Example:
        >>> [is_readable(tensor) for tensor in (torch.ones(2), torch.ones(2, device="meta"), torch.ones(2).long())]
        [True, False, False]
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return False
    kind = type(tensor)
    if kind is Tensor or kind is nn.Parameter:  # nearly always
        return True
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return not isinstance(tensor, (UninitializedParameter, UninitializedBuffer))
    return is_sharded(tensor) or tensor.is_nested or kind.__name__ == "AsyncCollectiveTensor"


def entry_count(tensor: Tensor) -> int:
    """Return the number of entries of a tensor; for a nested one, of all its parts.

    Example:
        >>> entry_count(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
        5
    """
    return _stored(tensor.detach()).numel() if tensor.is_nested else tensor.numel()


def _stored(tensor: Tensor) -> Tensor:
    if tensor.is_nested:
        parts = [part.reshape(-1) for part in tensor.unbind()]
        tensor = torch.cat(parts) if parts else torch.zeros(0, dtype=tensor.dtype, device=tensor.device)
    if tensor.is_mkldnn:
        tensor = tensor.to_dense()
    elif tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.values()
    if tensor.itemsize == 1:  # a float8 is only a way of storing
        tensor = tensor.float()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def batches(tensors: Sequence[Tensor | None]) -> list[Batch]:
    """Group tensors by device, dtype and kind; return the positions and the stored values of each group.

    Example:
        >>> tensors = [torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), None, torch.zeros(3)]
        >>> [positions for positions, _ in batches(tensors)]
        [[0, 3], [1]]
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for position, tensor in enumerate(tensors):
        if tensor is not None:
            key = tensor.dtype, tensor.device, tensor.layout, type(tensor)
            try:
                alike[key].append(position)
            except KeyError:
                alike[key] = [position]
    return [(positions, _stored_all([tensors[i] for i in positions])) for positions in alike.values()]


def _stored_all(batch: list[Any]) -> list[Tensor]:
    return batch if is_plain(batch[0]) else [stored_values(tensor) for tensor in batch]


def l2_norms(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor: finite if all entries are finite, and 0 only if they all are.

    ``torch._foreach_norm`` in float32 gives ``inf`` for a gradient of 1e20 and 0 for one of 1e-23.

    Shapes: ``tensors``: any, one device and one real dtype; the result: float64, one value a tensor, on that device.
    Non-finite entries: the norm is ``inf`` or ``nan``.
    Cost: one pass. On a CPU a tensor whose squares leave the range of float32 is read again. Elsewhere nothing is read
    back: CUDA accumulates in float64, other devices scale by the largest entry.
    """
    device = tensors[0].device.type
    if device == "cuda":
        return torch.stack(foreach_norm(tensors, 2, dtype=torch.float64))
    if device != "cpu":
        return _l2_norms_scaled(tensors)
    if all(map(is_on_host, tensors)):
        return torch.from_numpy(norms_of_all(tensors))
    return torch.tensor([norm_on_host(tensor) for tensor in tensors], dtype=torch.float64)


def norm_on_host(values: Tensor) -> float:
    """Return the L2 norm of one real tensor in the host's memory, as :func:`l2_norms` does."""
    if is_on_host(values):
        return norm_of(flat_array(values))
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _l2_norms_scaled(tensors: list[Tensor]) -> Tensor:
    # Divided by the largest entry, all squares lie in [0, 1]; "tiny" keeps tensors of zeros from 0 / 0.
    scales = [norm.clamp_(min=torch.finfo(norm.dtype).tiny) for norm in foreach_norm(tensors, float("inf"))]
    return torch.stack(foreach_norm(foreach_div(tensors, scales), 2)) * torch.stack(scales)


def norms_and_nonzero_counts(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the L2 norm of each tensor, and how many of its entries are not exactly zero; NaN counts as not zero.

    On a CPU both are read in one pass.
    """
    if not all(is_on_host(tensor) for tensor in tensors):
        return l2_norms(tensors), _nonzero_counts(tensors)
    norms, zeros = norms_and_zeros(tensors)
    counts = np.array([tensor.numel() for tensor in tensors]) - zeros
    return torch.from_numpy(norms), torch.from_numpy(counts)


def _nonzero_counts(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.count_nonzero(tensor) for tensor in tensors]).double()


def nonfinite_counts(tensors: list[Tensor], norms: Tensor) -> Tensor:
    """Return how many entries of each tensor are NaN or Inf, given the tensors' norms.

    On a CPU only the tensors with a non-finite norm are read. Elsewhere all are, to avoid a sync: 0 times a non-finite
    number is NaN, which counts as not zero.
    """
    if norms.device.type != "cpu":
        return _nonzero_counts(foreach_mul(tensors, 0.0))
    counts = torch.zeros_like(norms)
    for i in np.flatnonzero(~np.isfinite(norms.numpy())).tolist():
        counts[i] = (~tensors[i].isfinite()).sum()
    return counts


def by_kind(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the positions of the tensors, grouped by device and dtype."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(position)
    return list(kinds.values())


def norms_of(tensors: list[Tensor], kinds: Sequence[Sequence[int]], p: float) -> Tensor:
    """Return the p-norm of each tensor in float64, on the first one's device, given their positions by kind.

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
    return torch.stack(foreach_norm(tensors, p, dtype=wide))


def _largest(values: Tensor) -> Tensor:
    if values.numel() == 0:
        return values.new_zeros(())
    low, high = torch.aminmax(values)
    return torch.maximum(high, -low)
