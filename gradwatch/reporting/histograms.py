"""The entries of a gradient that a histogram can hold, and bins that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ENDS = (1e-12, 9e19)  # between these TensorBoard's own bins lie, on both sides of 0
_BINS_A_DECADE = 24  # as its own


def finite_entries(gradient: Tensor) -> npt.NDArray[Any]:
    """All finite entries as one row on the host; real and imaginary parts of a complex gradient are two entries each.

    Of a sparse gradient these are the entries it stores, of a sharded one those of this process.

    Example:
        >>> finite_entries(torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]]))
        array([1., 2.], dtype=float32)
    """
    local = getattr(gradient, "to_local", None)
    values = (gradient if local is None else local()).detach()
    values = values.coalesce().values() if values.is_sparse else values.to_dense()
    values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    values = values.float() if values.itemsize < 4 else values
    array: npt.NDArray[Any] = values[torch.isfinite(values)].cpu().numpy()
    return array


def wide_bins(entries: npt.NDArray[Any]) -> str | npt.NDArray[Any]:
    """Return the name of TensorBoard's own bins, or wider ones where an exploding gradient would lie in none of them.

    Example:
        >>> wide_bins(np.array([1.0, -2.0])), len(wide_bins(np.array([1e25])))
        ('tensorflow', 1777)
    """
    first, last = _ENDS
    largest = float(np.abs(entries).max())
    if largest < last:
        return "tensorflow"
    edges = np.geomspace(first, largest, round(np.log10(largest) - np.log10(first)) * _BINS_A_DECADE)
    return np.concatenate([-edges[::-1], [0.0], edges])
