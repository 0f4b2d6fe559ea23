"""Norms and counts of many tensors at once: fused, safe against overflow and underflow, left on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradwatch.probe.shards import local_part

# A float32 sum of squares is exact enough between these norms; outside them squares overflow or go subnormal.
_TINY, _HUGE = 1e-17, 1e18


def stored_values(tensor: Tensor) -> Tensor:
    """The entries a process stores, as a real strided tensor: same L2 norm, no graph, no copy where none is needed."""
    tensor = local_part(tensor.detach())
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor


def l2_norms(tensors: list[Tensor]) -> Tensor:
    """L2 norm of each tensor; finite wherever all entries are finite, and not 0 unless they all are.

    ``torch._foreach_norm`` in float32 gives ``inf`` for a gradient of 1e20 and 0 for one of 1e-23.

    Shapes: ``tensors``: any, one device and one real dtype; the result: float64, one value a tensor, on that device.
    Non-finite entries: the norm is ``inf`` or ``nan``.
    Cost: one fused pass. On a CPU, tensors whose float32 norm is out of the safe range are read again in float64.
    Elsewhere nothing is read back: CUDA accumulates in float64, other devices scale by the largest entry.

    Example:
        >>> l2_norms([torch.full((4,), 1e20), torch.full((4,), 1e-30)])
        tensor([2.0000e+20, 2.0000e-30], dtype=torch.float64)
    """
    device = tensors[0].device.type
    if device == "cuda":
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64))
    if device == "cpu":
        return _l2_norms_checked(tensors)
    return _l2_norms_scaled(tensors)


def _l2_norms_checked(tensors: list[Tensor]) -> Tensor:
    # float64 accumulation costs 20 times the float32 pass on a CPU, so only the odd tensor gets it; looking at the
    # values is free here, as they are in the host's memory.
    dtype = torch.float32 if tensors[0].itemsize < 4 else None
    norms = torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)).double()
    values = norms.numpy()
    for i in np.flatnonzero(~((values > _TINY) & (values < _HUGE))).tolist():
        values[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64).numpy()
    return norms


def _l2_norms_scaled(tensors: list[Tensor]) -> Tensor:
    scales = [norm.clamp_(min=torch.finfo(norm.dtype).tiny) for norm in torch._foreach_norm(tensors, float("inf"))]
    norms = torch._foreach_norm(torch._foreach_div(tensors, scales), 2)
    return torch.stack(norms) * torch.stack(scales)


def nonzero_counts(tensors: list[Tensor]) -> Tensor:
    """How many entries of each tensor are not exactly zero; NaN counts as not zero.

    Example:
        >>> nonzero_counts([torch.tensor([0.0, 1.0, float("nan")])])
        tensor([2.], dtype=torch.float64)
    """
    return torch.stack([torch.count_nonzero(tensor) for tensor in tensors]).double()


def nonfinite_counts(tensors: list[Tensor], norms: Tensor) -> Tensor:
    """How many entries of each tensor are NaN or Inf, given the tensors' norms.

    On a CPU only the tensors with a non-finite norm are read. Elsewhere all are, to stay free of a sync: 0 times a
    non-finite number is NaN, and that is counted as not zero.

    Example:
        >>> tensors = [torch.ones(3), torch.tensor([float("inf"), 1.0])]
        >>> nonfinite_counts(tensors, l2_norms(tensors))
        tensor([0., 1.], dtype=torch.float64)
    """
    if norms.device.type != "cpu":
        return nonzero_counts(list(torch._foreach_mul(tensors, 0.0)))
    counts = torch.zeros_like(norms)
    for i in np.flatnonzero(~np.isfinite(norms.numpy())).tolist():
        counts[i] = (~tensors[i].isfinite()).sum()
    return counts
