"""Norms and counts of single tensors in the host's memory, in one pass over it, by NumPy's BLAS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradwatch.records import Array

Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Flat = npt.NDArray[np.floating[Any]]

# A float32 sum of so many squares is right to 5e-7, and so many entries stay in the processor's cache for a second
# look. BLAS takes 1.4 us for them, and 0.4 us more where the squares are subnormal; torch's norm 3 us, and up to 90 us.
_BLOCK = 1 << 14

# Entries of tensors that are read as one row: of 65 biases that takes a tenth of the time. And how many are worth it.
_SMALL, _FEW = 1 << 10, 4

# Entries from which on torch's threads read an array, where there are several: two read 2 million entries in half the
# time of one, but to wake a thread costs more than to read what is in the cache. And entries of a row, that is one sum.
_LARGE, _ROW = 1 << 20, 1 << 12
_FAST = 1e-25  # sum of the squares of the first row, beyond which hardly any square is subnormal

_WIDE = (torch.float32, torch.float64)
# Sums of squares between which nothing was lost, and a power of two that brings all others between them.
_ALWAYS_SAFE = (1e-34, 1e36)  # in both
_SAFE = {4: (*_ALWAYS_SAFE, 2.0**100), 8: (1e-280, 1e280, 2.0**600)}


def is_on_host(tensor: Tensor) -> bool:
    """Return True if NumPy can read a real, strided tensor where it lies.

    A sum over processes that is still being computed (AsyncCollectiveTensor) lies nowhere yet.
    """
    return tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter)


def flat_array(values: Tensor) -> Flat:
    """Return the entries of a real, strided tensor in the host's memory, in any order; half precision as float32.

    It is a view where the memory has no gaps.
    """
    array: Flat = (values if values.dtype in _WIDE else values.float()).numpy(force=True)
    return array if array.ndim == 1 else array.ravel(order="K")


def norm_of(flat: Flat) -> float:
    """Return the L2 norm: finite if all entries are finite, and 0 only if they all are.

    Example:
        >>> [float(f"{norm_of(np.array([3, 4], np.float32) * np.float32(10.0**k)):.6g}") for k in (-30, 30)]
        [5e-30, 5e+30]
    """
    if flat.size <= _BLOCK:
        squares = float(np.vdot(flat, flat))
        return math.sqrt(squares) if _ALWAYS_SAFE[0] < squares < _ALWAYS_SAFE[1] else _root(squares, flat)
    if _is_for_threads(flat):
        return _root(_squares_by_threads(flat), flat)
    return _root(sum(float(np.vdot(block, block)) for block in _blocks(flat)), flat)


def _is_for_threads(flat: Flat) -> bool:
    """Return True for a large array whose first entries have squares that torch reads fast: no subnormal ones."""
    if flat.size < _LARGE or torch.get_num_threads() == 1:
        return False
    first = flat[:_ROW]
    return float(np.vdot(first, first)) > _FAST


def _squares_by_threads(flat: Flat) -> float:
    whole = flat.size // _ROW * _ROW
    rows = torch.linalg.vector_norm(torch.from_numpy(flat[:whole]).view(-1, _ROW), dim=1).double().numpy()
    return float(np.vdot(rows, rows)) + float(np.vdot(flat[whole:], flat[whole:]))


def norm_and_zeros_of(flat: Flat) -> tuple[float, int]:
    """Return the L2 norm and the number of entries that are exactly zero, which NaN is not.

    Example:
        >>> norm_and_zeros_of(np.array([0.0, 2.0, -0.0], np.float32))
        (2.0, 2)
    """
    if _is_for_threads(flat):
        return _root(_squares_by_threads(flat), flat), flat.size - int(torch.count_nonzero(torch.from_numpy(flat)))
    squares, zeros = 0.0, 0
    for block in _blocks(flat):
        squares += float(np.vdot(block, block))
        # Comparing and counting booleans are both vectorized: a fourth of the time of counting nonzero floats.
        zeros += int(np.count_nonzero(block == 0))
    return _root(squares, flat), zeros


def norms_and_zeros(tensors: Sequence[Tensor]) -> tuple[Array, Array]:
    """Return the L2 norms of tensors of one dtype, and their numbers of zeros; those of small ones at once.

    Example:
        >>> [column.tolist() for column in norms_and_zeros([torch.tensor([3.0, 4.0]), torch.zeros(2)])]
        [[5.0, 0.0], [0.0, 2.0]]
    """
    norms, zeros = np.empty(len(tensors)), np.empty(len(tensors))
    small, starts = _small_ones(tensors)
    if len(starts):
        row = _row_of(tensors, small)
        norms[small] = norms_in(row, starts)
        zeros[small] = np.add.reduceat((row == 0).view(np.int8), starts, dtype=np.int64)
    for place in np.flatnonzero(~small).tolist():
        norms[place], zeros[place] = norm_and_zeros_of(flat_array(tensors[place]))
    return norms, zeros


def norms_of_all(tensors: Sequence[Tensor]) -> Array:
    """Return the L2 norms of tensors of one dtype.

    Example:
        >>> norms_of_all([torch.tensor([3.0, 4.0])])
        array([5.])
    """
    norms = np.empty(len(tensors))
    small, starts = _small_ones(tensors)
    if len(starts):
        norms[small] = norms_in(_row_of(tensors, small), starts)
    for place in np.flatnonzero(~small).tolist():
        norms[place] = norm_of(flat_array(tensors[place]))
    return norms


def _small_ones(tensors: Sequence[Tensor]) -> tuple[Flags, Indices]:
    """Return which tensors are read as one row, and where each of these starts in it."""
    sizes = np.array([tensor.numel() for tensor in tensors])
    small = (sizes > 0) & (sizes <= _SMALL)
    if small.sum() < _FEW or tensors[0].dtype == torch.float64:  # of which squares may leave the range
        return np.zeros(len(tensors), np.bool_), sizes[:0]
    return small, np.cumsum(sizes[small]) - sizes[small]


def _row_of(tensors: Sequence[Tensor], small: Flags) -> Array:
    """Return the entries of the small tensors as one row of float64, in which no square of a float32 is lost."""
    chosen = [tensor for tensor, yes in zip(tensors, small.tolist(), strict=True) if yes]
    with torch.no_grad():
        row = torch.cat([tensor if tensor.dim() == 1 else tensor.reshape(-1) for tensor in chosen])
    return flat_array(row).astype(np.float64)


def norms_in(row: Array, starts: Indices) -> Array:
    """Return the L2 norms of the parts of a row that start at these places, each up to the next one."""
    return np.asarray(np.sqrt(np.add.reduceat(row * row, starts)))


def _blocks(flat: Flat) -> list[Flat]:
    """Return an array in parts that stay in the processor's cache."""
    if flat.size <= _BLOCK:
        return [flat]
    return [flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK)]


def _root(squares: float, flat: Flat) -> float:
    """Return the root of a sum of squares, which is computed again from scaled entries where squares left the range."""
    lowest, highest, factor = _SAFE[flat.itemsize]
    if lowest < squares < highest:
        return math.sqrt(squares)
    if not flat.size:
        return 0.0
    # NaN and Inf stay what they are. A scaled copy of a block costs less than a pass in float64.
    scale = flat.dtype.type(factor if squares <= lowest else 1 / factor)
    with np.errstate(all="ignore"):
        scaled = sum(float(np.vdot(block, block)) for block in (scale * block for block in _blocks(flat)))
    return math.sqrt(scaled) / float(scale)
