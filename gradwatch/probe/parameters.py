"""The norms and counts of an optimizer's parameters and gradients, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.probe.norms import Batch, batches, l2_norms, nonfinite_counts, nonzero_counts
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.shards import is_sharded, local_part, norms_over_shards, summed
from gradwatch.records import Array
from gradwatch.torch_internals import is_flat_piece, version_of


@dataclass(frozen=True)
class Settings:
    """An optimizer's settings.

    Attributes:
        optimizer: its class's name.
        learning_rate: the largest of its groups; NaN where only a device knows it.

    Example:
        >>> import torch
        >>> Settings.of(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        Settings(optimizer='SGD', learning_rate=0.1)
    """

    optimizer: str = ""
    learning_rate: float = math.nan

    @classmethod
    def of(cls, optimizer: Optimizer) -> Settings:
        """Read the settings of an optimizer that is about to step."""
        wrapped = getattr(optimizer, "optimizer", optimizer)  # LightningOptimizer
        rates = [_on_host(group.get("lr", math.nan)) for group in optimizer.param_groups]
        return cls(type(wrapped).__name__, max(rates, default=math.nan))


def _on_host(rate: Any) -> float:
    if isinstance(rate, Tensor) and not rate.is_cpu:
        return math.nan
    try:
        return float(rate)
    except (TypeError, ValueError):  # a user's optimizer may call anything "lr"
        return math.nan


NONE = -1
Slots = npt.NDArray[np.int_]  # one a parameter; NONE where it has no such number


class ParameterReading:
    """The numbers of one optimizer's parameters that require a gradient.

    Those of a sharded parameter are about the part that this process holds.

    Args:
        ranks: the processes that train together; None for a single one.
        scale: factor that the gradients still have, on the device; None where they are unscaled.

    Attributes:
        names: of the parameters, with or without a gradient.
        sizes: their numbers of entries.
        shares, grad_shares: weight of a parameter's entries, or of its gradient's, in a sum over all processes.
        grad_norm, nonzero, nonfinite, weight_norm: for each, the slot of the number in ``scalars``, or -1.
        grad_norm_after: slots of the norms after clipping; None before :meth:`read_again`.
        total: this process's part of the total gradient norm, a scalar on the device; the squares of all parts add up.
            None where no parameter has a gradient.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        scalars: DeviceScalars,
        ranks: Ranks | None = None,
        scale: Tensor | None = None,
    ) -> None:
        self.names = list(params)
        self.grad_norm_after: Slots | None = None
        self._params = list(params.values())
        self.sizes = [local_part(param.detach()).numel() for param in self._params]
        self._fingerprint = _fingerprint(self._params)
        self._grad_norms = _norms_over(scale)
        with torch.no_grad():  # detaching each tensor would cost as much as a pass over the small ones
            grads = _gradients(self._params)
            self.shares, self.grad_shares = _shares(self._params, grads, ranks)
            self._read(grads, scalars)

    def _read(self, grads: Sequence[Tensor | None], scalars: DeviceScalars) -> None:
        alike, weights = batches(grads), batches(self._params)
        norms = [self._grad_norms(batch) for _, batch in alike]
        nonfinite = [nonfinite_counts(batch, norm) for (_, batch), norm in zip(alike, norms, strict=True)]
        self.grad_norm = self._keep(alike, norms, scalars)
        self.nonzero = self._keep(alike, [nonzero_counts(batch) for _, batch in alike], scalars)
        self.nonfinite = self._keep(alike, nonfinite, scalars)
        self.weight_norm = self._keep(weights, [l2_norms(batch) for _, batch in weights], scalars)
        self.total = _total_of(alike, norms, self.grad_shares)

    def read_again(self, scalars: DeviceScalars) -> None:
        """Read the gradients' norms again if anything changed them, such as a clip; else keep the slots.

        A change through ``.data`` is not noticed, as autograd does not count it.
        """
        if self._fingerprint is not None and _fingerprint(self._params) == self._fingerprint:
            self.grad_norm_after = self.grad_norm
            return
        with torch.no_grad():
            alike = batches(_gradients(self._params))
            self.grad_norm_after = self._keep(alike, [self._grad_norms(batch) for _, batch in alike], scalars)

    def _keep(self, alike: Sequence[Batch], numbers: Sequence[Tensor], scalars: DeviceScalars) -> Slots:
        slots = np.full(len(self.names), NONE)
        for (positions, _), chunk in zip(alike, numbers, strict=True):
            kept = scalars.values(chunk)
            slots[positions] = np.arange(kept.start, kept.stop)
        return slots


def _gradients(params: Sequence[nn.Parameter]) -> list[Tensor | None]:
    return [None if param.grad is None else summed(param.grad) for param in params]


def _norms_over(scale: Tensor | None) -> Callable[[list[Tensor]], Tensor]:
    if scale is None:
        return l2_norms
    return lambda tensors: l2_norms(tensors) / scale.to(tensors[0].device, non_blocking=True)


def _shares(params: Sequence[nn.Parameter], grads: Sequence[Tensor | None], ranks: Ranks | None) -> tuple[Array, Array]:
    if ranks is None:
        return np.ones(len(params)), np.ones(len(params))
    held = [ranks.share(param) for param in params]
    # FSDP2 and tensor parallelism may shard a gradient in another way than its parameter.
    cut = [ranks.share(grad) if grad is not None and is_sharded(grad) else None for grad in grads]
    return np.array(held), np.array([own if other is None else other for own, other in zip(held, cut, strict=True)])


def _fingerprint(params: Sequence[nn.Parameter]) -> tuple[list[int], list[int | None]] | None:
    # Autograd's version counter tells if a tensor was changed, without reading it. It saves the second pass over all
    # gradients on every step without a clip. A clip of a DTensor does not raise the DTensor's counter.
    grads = [param.grad for param in params]
    if any(is_sharded(grad) for grad in grads if grad is not None):
        return None
    versions = [0 if grad is None else version_of(grad) for grad in grads]
    return None if None in versions else (list(map(id, grads)), versions)


def _in_one_row(alike: Sequence[Batch], norms: Sequence[Tensor]) -> tuple[list[int], Tensor]:
    row = torch.cat([norm.to(norms[0].device, non_blocking=True) for norm in norms])
    return [position for positions, _ in alike for position in positions], row


def _total_of(alike: Sequence[Batch], norms: Sequence[Tensor], shares: Array) -> Tensor | None:
    if not norms:
        return None
    positions, row = _in_one_row(alike, norms)
    weights = np.sqrt(shares[positions])
    if (weights != 1).any():
        row = row * torch.from_numpy(weights).to(row.device, non_blocking=True)
    total: Tensor = torch.linalg.vector_norm(row)
    return total


@torch.no_grad()
def part_of_total_norm(
    params: Sequence[nn.Parameter], ranks: Ranks | None, scale: Tensor | None = None
) -> Tensor | None:
    """Return this process's part of the total L2 norm of the gradients, see ``ParameterReading.total``."""
    grads, measure = _gradients(params), _norms_over(scale)
    alike = batches(grads)
    return _total_of(alike, [measure(batch) for _, batch in alike], _shares(params, grads, ranks)[1])


@torch.no_grad()
def total_gradient_norm(params: Sequence[nn.Parameter]) -> Tensor | None:
    """Return the total L2 norm of the gradients, a float64 scalar left on the device; None where there is none.

    For DTensors it is the norm of the whole gradients. Then all their processes have to call this, and it costs one
    collective for each way of sharding.

    Raises:
        NotImplementedError: for FSDP1, whose pieces don't know how many others there are.
    """
    if any(map(is_flat_piece, params)):
        raise NotImplementedError(
            "the parameters are pieces of FSDP's flat ones, and the norm of what is here is not the norm; use "
            "GradientMonitor, which adds up the pieces, or FSDP2 (ModelParallelStrategy with fully_shard)"
        )
    grads = [grad for grad in _gradients(params) if grad is not None]
    if not grads:
        return None
    alike = batches(grads)
    positions, row = _in_one_row(alike, [l2_norms(batch) for _, batch in alike])
    total: Tensor = torch.linalg.vector_norm(norms_over_shards(row, [grads[position] for position in positions]))
    return total
