"""The entries of a gradient that a histogram can hold."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


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
