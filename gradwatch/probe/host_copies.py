"""Copies of parameters in the host's memory, all in one row, for the length of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gradwatch.probe.host_norms import flat_array, is_on_host, norm_of, norms_in
from gradwatch.records import Array
from gradwatch.torch_internals import foreach_copy_, foreach_sub_

_SMALL = 1 << 10  # entries of a copy whose norm is read together with others


def can_be_copied(param: Tensor) -> bool:
    """Return True for a parameter of the kind that nearly all are in the host's memory: float32 and not empty."""
    return param.dtype is torch.float32 and is_on_host(param) and param.numel() > 0 and not param.is_nested


def _is_place_for(copy: Tensor, param: Tensor) -> bool:
    return copy.shape == param.shape and can_be_copied(param)


def _known(norms: Array) -> Array:
    """Return norms with infinity for NaN, which is that of a parameter with NaN in it, and no missing number."""
    return np.where(np.isnan(norms), np.inf, norms)


class HostCopies:
    """Copies of some parameters, the smallest first. The memory serves as many steps as there are.

    Memory that is new in each step costs more than to copy the weights, since the system fills each page with zeros.

    Args:
        params: name -> parameter, each of which :func:`can_be_copied`.

    Attributes:
        names: of the parameters, in the order of the copies.
        nbytes: size of all copies.

    Example:
        >>> weight = torch.zeros(2)
        >>> copies = HostCopies({"weight": weight})
        >>> before = copies.take()
        >>> _ = weight.add_(torch.tensor([3.0, 4.0]))
        >>> before, copies.changes()
        (array([0.]), array([5.]))
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self._given = [*params]
        self.names = sorted(params, key=lambda name: params[name].numel())
        self._params = [params[name] for name in self.names]
        self._named = [*zip(self.names, self._params, strict=True)]
        sizes = [param.numel() for param in self._params]
        row = torch.empty(sum(sizes), dtype=torch.float32)
        self.nbytes = row.numel() * row.itemsize
        pieces = torch.split(row, sizes)
        self._copies = [piece.view(param.shape) for piece, param in zip(pieces, self._params, strict=True)]
        self._flats = [flat_array(piece) for piece in pieces]
        self._small = int(np.searchsorted(sizes, _SMALL, side="right"))
        self._starts = np.cumsum([0, *sizes])[: self._small]
        self._small_row = flat_array(row[: sum(sizes[: self._small])])

    def are_of(self, params: Mapping[str, Tensor]) -> bool:
        """Return True if these are the parameters, in the same order, with the shapes that they had."""
        same = [*params] == self._given and all(param is params[name] for name, param in self._named)
        return same and all(map(_is_place_for, self._copies, self._params))

    @torch.no_grad()
    def take(self) -> Array:
        """Copy all parameters; return the L2 norms, by place in ``names``."""
        foreach_copy_(self._copies, self._params)
        return self._norms()

    @torch.no_grad()
    def changes(self) -> Array:
        """Return the L2 norms of what has changed since the copies were taken; NaN where a parameter was moved.

        The copies become the differences, so this tells it once.
        """
        pairs = zip(self._params, self._copies, strict=True)
        moved = [place for place, (param, copy) in enumerate(pairs) if not _is_place_for(copy, param)]
        if moved:
            return self._changes_without(moved)
        foreach_sub_(self._copies, self._params)
        return _known(self._norms())

    def _changes_without(self, moved: Sequence[int]) -> Array:
        pairs = enumerate(zip(self._copies, self._params, strict=True))
        norms = np.array(
            [0.0 if place in moved else norm_of(flat_array(copy - param)) for place, (copy, param) in pairs]
        )
        norms = _known(norms)
        norms[list(moved)] = np.nan
        return norms

    def _norms(self) -> Array:
        """Return the norms of what is in the copies."""
        norms = np.empty(len(self.names))
        if self._small:
            norms[: self._small] = norms_in(self._small_row.astype(np.float64), self._starts)
        norms[self._small :] = [norm_of(flat) for flat in self._flats[self._small :]]
        return norms
