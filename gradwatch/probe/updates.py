"""The change of each parameter over an optimizer step, measured from the weights before and after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradwatch.probe.host_norms import is_on_host, norms_of_differences
from gradwatch.probe.norms import batches, l2_norms, norms_and_nonzero_counts, stored_values
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import SumLayout
from gradwatch.records import Array
from gradwatch.torch_internals import foreach_copy_, foreach_sub_

KEPT_BYTES = 64 * 2**20  # of weights that are kept whole; a step of a larger model would need a second copy of it
# Of a larger parameter 2,048 blocks of 16 entries are kept: a block is a line of the processor's cache. The norm of a
# Gaussian update is then known to 0.4 %; tests/benchmarks/updates/sample_error.py measures it on real ones.
_BLOCKS, _WIDTH = 2048, 16
_FEWEST = 64  # blocks: of 10,000 large parameters, which then take 40 MB
_SPOT = 256  # entries that tell if a parameter was put back


@dataclass
class Kept:
    """A parameter, and a copy of its weights, or of a sample of them, from before the step.

    Attributes:
        before: the copy, with the stored (real) entries of this process.
        blocks: number of blocks of the sample; 0 where all entries are kept.
        whole: number of all stored entries over the number of those that are kept: 1 where all are.
        share: weight of the parameter's entries in a sum over all processes.
    """

    param: nn.Parameter
    before: Tensor
    blocks: int
    whole: float
    share: float

    def after(self) -> Tensor | None:
        """Return the same entries now; None where the parameter was moved or replaced by another one meanwhile."""
        values = stored_values(self.param)
        now = sample_of(values, self.blocks) if self.blocks else values
        return now if _are_alike(now, self.before) else None


@dataclass(frozen=True)
class Change:
    """The slots of what a step changed in a parameter: the norm, and the number of entries where that is counted."""

    norm: int
    changed: int | None
    kept: float
    whole: float
    share: float


class Updates:
    """Measures the updates of one run's steps: ``keep`` before a step, ``measure`` after it.

    Up to a bound of memory the parameters are kept whole; of what is beyond it, a sample of the same entries at each
    step is kept, and the norm is estimated. The memory of the copies serves the next step, until :meth:`free`: of new
    memory each page is first filled with zeros, which costs more than to copy the weights into it.

    Args:
        bound: bytes of weights that may be kept whole at a time.

    Attributes:
        changes: parameter -> what the current step changed in it.
        put_back: parameter -> slot of a number that is 0 where it is as it was before the last measured step.

    Example:
        >>> layer, scalars = nn.Linear(1, 1, bias=False), DeviceScalars()
        >>> updates = Updates()
        >>> updates.keep({"weight": layer.weight}, scalars)
        >>> _ = layer.weight.data.add_(0.5)
        >>> updates.measure(scalars)
        >>> round(float(scalars.to_host()[updates.changes["weight"].norm]), 6)
        0.5
    """

    def __init__(self, bound: int = KEPT_BYTES) -> None:
        self._bound = bound
        self._waiting: dict[str, Kept] = {}
        self.changes: dict[str, Change] = {}
        self.put_back: dict[str, int] = {}
        self._last: dict[str, tuple[float, float]] = {}  # norms of the weights and of their update
        self._suspects: set[str] = set()
        self._spots: dict[str, Tensor] = {}
        self._memory: dict[str, Tensor] = {}  # parameter -> a tensor for its copy

    def begin(self) -> None:
        """Forget the current step."""
        self._waiting, self.changes, self.put_back = {}, {}, {}

    def free(self) -> None:
        """Let the memory of the copies go, as the next steps are not measured."""
        self._memory = {}

    @torch.no_grad()
    def keep(self, params: Mapping[str, nn.Parameter], scalars: DeviceScalars, ranks: Ranks | None = None) -> None:
        """Copy the weights of an optimizer's parameters, just before it steps.

        What is kept already stays: a closure (LBFGS) evaluates the loss many times within one step.
        """
        self._look_at_suspects(params, scalars)
        room = self._bound - sum(_size(kept.before) for kept in self._waiting.values() if not kept.blocks)
        missing = [(name, stored_values(param)) for name, param in params.items() if name not in self._waiting]
        fitting, blocks = len(missing), _BLOCKS
        if sum(_size(values) for _, values in missing) > room:
            missing.sort(key=lambda item: item[1].numel())  # a sample is best of the largest
            sizes = np.cumsum([_size(values) for _, values in missing])
            fitting = int(np.searchsorted(sizes, room, side="right"))
            blocks = _blocks_of(len(missing) - fitting)
        kept, copies = [], []
        for place, (name, values) in enumerate(missing):
            share = 1.0 if ranks is None else ranks.share(params[name])
            is_whole = place < fitting or values.numel() <= blocks * _WIDTH
            wanted = values if is_whole else sample_of(values, blocks)
            copy = self._room_for(name, wanted)
            entries = max(copy.numel(), 1)
            self._waiting[name] = Kept(
                params[name], copy, 0 if is_whole else blocks, 1.0 if is_whole else values.numel() / entries, share
            )
            kept.append(wanted)
            copies.append(copy)
        for positions, batch in batches(copies):
            foreach_copy_(batch, [kept[position] for position in positions])

    def _room_for(self, name: str, values: Tensor) -> Tensor:
        room = self._memory.get(name)
        if room is None or not _are_alike(room, values):
            room = self._memory[name] = torch.empty_like(values)
        return room

    @torch.no_grad()
    def measure(self, scalars: DeviceScalars) -> None:
        """Measure what has changed in the parameters that were kept, and let the copies go."""
        waiting, self._waiting = self._waiting, {}
        now = {name: after for name, kept in waiting.items() if (after := kept.after()) is not None}
        names = list(now)
        for positions, befores in batches([waiting[name].before for name in names]):
            afters = [now[names[position]] for position in positions]
            norms, changed = _changes(befores, afters, scalars)
            for position, norm, count in zip(positions, norms, changed, strict=True):
                kept = waiting[names[position]]
                entries = float(kept.before.numel())
                self.changes[names[position]] = Change(norm, count, entries, kept.whole, kept.share)

    def _look_at_suspects(self, params: Mapping[str, nn.Parameter], scalars: DeviceScalars) -> None:
        """Compare suspects with what they were before the last measured step, in a few entries."""
        for name in sorted(self._suspects & params.keys()):
            spot = sample_of(stored_values(params[name]), _SPOT // _WIDTH).clone()
            before = self._spots.get(name)
            if before is not None and before.shape == spot.shape and before.device == spot.device:
                self.put_back[name] = scalars.norm(spot.double() - before.double())
            self._spots[name] = spot

    def note(self, names: Sequence[str], weights: Array, updates: Array) -> None:
        """Suspect that a parameter was put back: a step moved it, and its norm is what it was before that step.

        Norms are known anyway, and two of different weights are hardly ever equal to the last bit. So only suspects
        are looked at themselves, from the next step on.
        """
        now = dict(zip(names, zip(weights.tolist(), updates.tolist(), strict=True), strict=True))
        last = {name: weight for name, (weight, update) in self._last.items() if update > 0}
        self._suspects = {name for name, (weight, _) in now.items() if last.get(name) == weight}
        self._spots = {name: spot for name, spot in self._spots.items() if name in self._suspects}
        self._last = now


def _changes(
    befores: list[Tensor], afters: list[Tensor], scalars: DeviceScalars
) -> tuple[Sequence[int], Sequence[int | None]]:
    """Return the slots of the norms of the differences, and of the number of changed entries in half precision."""
    if befores[0].itemsize < 4:
        differences = [before.float() - after.float() for before, after in zip(befores, afters, strict=True)]
        norms, counts = norms_and_nonzero_counts(differences)
        return scalars.values(norms), scalars.values(counts)
    none = [None] * len(befores)
    if all(map(is_on_host, [*befores, *afters])) and [b.stride() for b in befores] == [a.stride() for a in afters]:
        return scalars.values(torch.from_numpy(norms_of_differences(befores, afters))), none
    foreach_sub_(befores, afters)  # the copies become the differences, so no third one of the weights is needed
    return scalars.values(l2_norms(befores)), none


def _are_alike(values: Tensor, others: Tensor) -> bool:
    return values.shape == others.shape and values.device == others.device and values.dtype == others.dtype


def sample_of(values: Tensor, blocks: int = _BLOCKS) -> Tensor:
    """Return blocks of entries from all over a tensor, always the same ones; a view where its memory has no gaps.

    Shapes: ``values``: any; the result has ``(blocks, 16)``, or is flat and has all entries of a small tensor.

    Example:
        >>> sample_of(torch.arange(10_000), blocks=3)[:, 0]
        tensor([   0, 3333, 6666])
    """
    flat = values.view(-1) if values.is_contiguous() else values.reshape(-1)
    stride = flat.numel() // blocks
    if stride <= _WIDTH:
        return flat
    # Without a common divisor with the sizes of the dimensions, the blocks come to lie in all rows and columns.
    while stride > _WIDTH and any(math.gcd(stride, size) > 1 for size in values.shape):
        stride -= 1
    return flat.as_strided((blocks, _WIDTH), (stride, 1))


def _blocks_of(count: int) -> int:
    """Return how many blocks are kept of each of so many large parameters: fewer where all would be too much."""
    most = KEPT_BYTES // (max(count, 1) * _WIDTH * 4)
    return min(_BLOCKS, max(most, _FEWEST))


def _size(values: Tensor) -> int:
    return values.numel() * values.itemsize


def add_updates(layout: SumLayout, updates: Updates, index: Mapping[str, int]) -> None:
    """Add the updates of a step to its sums; ``index``: parameter -> its place."""
    changes = [(index[name], change) for name, change in updates.changes.items() if name in index]
    at = np.array([place for place, _ in changes], np.intp)
    weights = np.array([change.share * change.whole for _, change in changes])
    layout.add("update", at, [change.norm for _, change in changes], power=2, weight=weights)
    layout.count("updated", at)
    counted = [(place, change) for place, change in changes if change.changed is not None]
    places = np.array([place for place, _ in counted], np.intp)
    weights = np.array([change.share for _, change in counted])
    layout.add("changed", places, [change.changed for _, change in counted], weight=weights)
    layout.count("counted", places, weights * np.array([change.kept for _, change in counted]))
    _add_put_back(layout, updates.put_back, index)


def _add_put_back(layout: SumLayout, put_back: Mapping[str, int], index: Mapping[str, int]) -> None:
    at = np.array([index[name] for name in put_back if name in index], np.intp)
    slots = [slot for name, slot in put_back.items() if name in index]
    layout.add("apart", at, slots, power=2)
    layout.count("compared", at)


UPDATE_SUMS = ("update", "updated", "changed", "counted", "apart", "compared")


def update_columns(sums: Mapping[str, Array], read: Any) -> dict[str, Array]:
    """Return the columns about the updates of the parameters at the places ``read``."""

    def over(numbers: Array, counts: Array) -> Array:
        quotients: Array = np.divide(numbers, counts, out=np.full(len(counts), np.nan), where=counts > 0)
        return np.asarray(quotients[read])

    updated = np.where(sums["updated"] > 0, sums["update"], np.nan)
    return {
        "param_update_norm": np.sqrt(updated[read]),
        "param_changed": over(sums["changed"], sums["counted"]),
        "param_put_back": over((sums["apart"] == 0) * sums["compared"], sums["compared"]),
    }
