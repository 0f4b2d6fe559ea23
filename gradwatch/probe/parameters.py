"""The norms and counts of an optimizer's parameters and gradients, and its settings."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.probe.norms import Batch, batches, is_readable, l2_norms, nonfinite_counts, norms_and_nonzero_counts
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.shards import is_sharded, local_part, norms_over_shards, summed
from gradwatch.records import Array
from gradwatch.torch_internals import is_flat_piece, version_of


@dataclass(frozen=True, eq=False)
class Settings:
    """An optimizer's settings.

    Attributes:
        optimizer: its class's name.
        rates: learning rate of each parameter group; NaN where only a device knows it.
        initial_rates: the rates that a schedule started from; NaN without a schedule.
        weight_decays: weight decay of each group; NaN where it has none.
        group_of: place of the group of each parameter, by the parameter's id.

    Example:
        >>> import torch
        >>> settings = Settings.of(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        >>> settings.optimizer, settings.learning_rate
        ('SGD', 0.1)
    """

    optimizer: str = ""
    rates: tuple[float, ...] = ()
    initial_rates: tuple[float, ...] = ()
    group_of: Mapping[int, int] = field(default_factory=dict)
    weight_decays: tuple[float, ...] = ()

    @classmethod
    def of(cls, optimizer: Optimizer) -> Settings:
        """Read the settings of an optimizer that is about to step."""
        wrapped = getattr(optimizer, "optimizer", optimizer)  # LightningOptimizer
        groups = optimizer.param_groups
        rates, initial, decays = (
            tuple(_on_host(group.get(key)) for group in groups) for key in ("lr", "initial_lr", "weight_decay")
        )
        group_of = {id(param): place for place, group in enumerate(groups) for param in group["params"]}
        return cls(type(wrapped).__name__, rates, initial, group_of, decays)

    @property
    def learning_rate(self) -> float:
        """The largest of the groups; NaN where only a device knows it."""
        return max(self.rates, default=math.nan)


def _on_host(rate: Any) -> float:
    if isinstance(rate, Tensor) and not rate.is_cpu:
        return math.nan
    try:
        return float(rate)
    except (TypeError, ValueError):  # a user's optimizer may call anything "lr"
        return math.nan


_UNKNOWN = Settings()


class Groups:
    """The parameter groups of the optimizers that stepped in a measured step, and the types of their parameters.

    Attributes:
        is_empty: no optimizer holds a parameter, of any model, that requires a gradient.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> groups = Groups()
        >>> groups.add(dict(layer.named_parameters()), Settings.of(torch.optim.SGD(layer.parameters(), lr=0.1)))
        >>> groups.columns(["weight"])["param_groups"]
        ('SGD 0',)
    """

    def __init__(self) -> None:
        self._settings: dict[str, tuple[Settings, int]] = {}  # by parameter
        self._dtypes: dict[str, str] = {}
        self.is_empty = True

    def __len__(self) -> int:
        return len(self._settings)

    def add(self, params: Mapping[str, nn.Parameter], settings: Settings) -> None:
        """Note in which groups the parameters of an optimizer are; the last note of a parameter counts."""
        for name, param in params.items():
            self._settings[name] = settings, settings.group_of.get(id(param), 0)
            self._dtypes[name] = str(param.dtype).removeprefix("torch.")

    def columns(self, params: Sequence[str]) -> dict[str, Any]:
        """Return the columns about the groups of the parameters."""
        held: dict[str, tuple[Settings, int]] = {}
        names: dict[int, str] = {}
        labels = []
        for name in params:
            settings, place = self._settings.get(name, (_UNKNOWN, 0))
            if id(settings) not in names:
                same = sum(other.partition("-")[0] == settings.optimizer for other in names.values())
                names[id(settings)] = f"{settings.optimizer}-{same}" if same else settings.optimizer
            label = f"{names[id(settings)]} {place}"
            held[label] = settings, place
            labels.append(label)
        dtypes = tuple(self._dtypes.get(name, "float32") for name in params)
        return {
            "param_dtypes": dtypes if {*dtypes} - {"float32"} else (),
            "param_groups": tuple(labels),
            "groups": tuple(held),
            "group_learning_rate": [_at(settings.rates, place) for settings, place in held.values()],
            "group_initial_rate": [_at(settings.initial_rates, place) for settings, place in held.values()],
            "group_weight_decay": [_at(settings.weight_decays, place) for settings, place in held.values()],
        }


def _at(rates: Sequence[float], place: int) -> float:
    return rates[place] if place < len(rates) else math.nan


NONE = -1
Slots = npt.NDArray[np.int_]  # one a parameter; NONE where it has no such number


class ParameterReading:
    """The numbers of one optimizer's parameters that require a gradient.

    Those of a sharded parameter are about the part that this process holds.

    Args:
        ranks: the processes that train together; None for a single one.
        weights: parameter -> slot of the norm of its weights, where that is known already.
        with_zeros: count the zeros in the gradients.
        scale: factor that the gradients still have, on the device; None where they are unscaled.

    Attributes:
        names: of the parameters, with or without a gradient.
        sizes: their numbers of entries.
        shares, grad_shares: weight of a parameter's entries, or of its gradient's, in a sum over all processes.
        grad_norm, nonzero, nonfinite, weight_norm: for each, the slot of the number in ``scalars``, or -1.
        grad_norm_after: slots of the norms after clipping; None before :meth:`read_again`.
        carried: parameters whose gradients may be carried over -> slots, see :class:`CarriedGradients`.
        total: this process's part of the total gradient norm, a scalar on the device; the squares of all parts add up.
            None where no parameter has a gradient.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        scalars: DeviceScalars,
        ranks: Ranks | None = None,
        scale: Tensor | None = None,
        weights: Mapping[str, int] = MappingProxyType({}),
        *,
        with_zeros: bool = True,
    ) -> None:
        self.names = list(params)
        self.grad_norm_after: Slots | None = None
        self.carried: Mapping[str, Sequence[int]] = {}
        self._params = list(params.values())
        self.sizes = [local_part(param.detach()).numel() for param in self._params]
        self._fingerprint = _fingerprint(self._params)
        self._scale = scale
        with torch.no_grad():  # detaching each tensor would cost as much as a pass over the small ones
            grads = _gradients(self._params)
            self.shares, self.grad_shares = _shares(self._params, grads, ranks)
            self._read(grads, scalars, with_zeros=with_zeros)
            self.weight_norm = self._read_weights(weights, scalars)

    def _read_weights(self, known: Mapping[str, int], scalars: DeviceScalars) -> Slots:
        others = batches([None if name in known else p for name, p in zip(self.names, self._params, strict=True)])
        slots = self._keep(others, [l2_norms(batch) for _, batch in others], scalars)
        return np.array([known.get(name, slot) for name, slot in zip(self.names, slots.tolist(), strict=True)])

    def _read(self, grads: Sequence[Tensor | None], scalars: DeviceScalars, *, with_zeros: bool) -> None:
        alike = batches(grads)
        if with_zeros:
            both = [norms_and_nonzero_counts(batch) for _, batch in alike]
            norms, counts = [norm for norm, _ in both], [count for _, count in both]
        else:
            norms, counts = [l2_norms(batch) for _, batch in alike], []
        norms = [_over(norm, self._scale) for norm in norms]
        nonfinite = [nonfinite_counts(batch, norm) for (_, batch), norm in zip(alike, norms, strict=True)]
        self.grad_norm = self._keep(alike, norms, scalars)
        self.nonzero = self._keep(alike if with_zeros else [], counts, scalars)
        self.nonfinite = self._keep(alike, nonfinite, scalars)
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
            self.grad_norm_after = self._keep(
                alike, [_over(l2_norms(batch), self._scale) for _, batch in alike], scalars
            )

    def _keep(self, alike: Sequence[Batch], numbers: Sequence[Tensor], scalars: DeviceScalars) -> Slots:
        slots = np.full(len(self.names), NONE)
        for (positions, _), chunk in zip(alike, numbers, strict=True):
            kept = scalars.values(chunk)
            slots[positions] = np.arange(kept.start, kept.stop)
        return slots


def _gradients(params: Sequence[nn.Parameter]) -> list[Tensor | None]:
    return [None if param.grad is None else summed(param.grad) for param in params]


def _over(norms: Tensor, scale: Tensor | None) -> Tensor:
    return norms if scale is None else norms / scale.to(norms.device, non_blocking=True)


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
    """Return this process's part of the total L2 norm of the gradients, see ``ParameterReading.total``.

    It is None, too, where a gradient is of a class that may hold anything.
    """
    grads = _gradients(params)
    if not all(is_readable(grad) for grad in grads if grad is not None):
        return None
    alike = batches(grads)
    return _total_of(alike, [_over(l2_norms(batch), scale) for _, batch in alike], _shares(params, grads, ranks)[1])


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


def has_gradient(readings: Iterable[ParameterReading], names: Collection[str]) -> bool:
    """Return True if one of these parameters has a gradient."""
    slots = (slot for reading in readings for slot in zip(reading.names, reading.grad_norm, strict=True))
    return any(slot != NONE and name in names for name, slot in slots)
