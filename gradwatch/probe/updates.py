"""The change of each parameter over an optimizer step, measured from the weights before and after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradwatch.probe.host_copies import HostCopies, can_be_copied
from gradwatch.probe.norms import batches, l2_norms, norms_and_nonzero_counts, stored_values
from gradwatch.probe.ranks import Ranks
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import SumLayout
from gradwatch.records import Array
from gradwatch.torch_internals import foreach_sub_

KEPT_BYTES = 64 * 2**20  # of weights that are kept whole; a step of a larger model would need a second copy of it
# Of a larger parameter 2,048 blocks of 16 entries are kept: a block is a line of the processor's cache. The norm of a
# Gaussian update is then known to 0.4 %; tests/benchmarks/updates/sample_error.py measures it on real ones.
_BLOCKS, _WIDTH = 2048, 16
_FEWEST = 64  # blocks: of 10,000 large parameters, which then take 40 MB
_MOST_ROWS = 3  # sets of parameters whose memory is held, besides the latest: those of other optimizers
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
    step is kept, and the norm is estimated. What a step kept is let go when its update is measured, but for copies in
    the host's memory, whose memory serves the next steps, until :meth:`free`.

    Args:
        bound: bytes of weights that may be kept whole at a time.

    Attributes:
        changes: parameter -> what the current step changed in it.
        put_back: parameter -> slot of a number that is 0 where it is as it was before the last measured step.

    Example:
        >>> layer, scalars = nn.Linear(1, 1, bias=False), DeviceScalars()
        >>> updates = Updates()
        >>> _ = updates.keep({"weight": layer.weight}, scalars)
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
        self._rows: list[tuple[HostCopies, list[float]]] = []  # of this step, each with the shares of its parameters
        self._known_rows: list[HostCopies] = []  # whose memory serves the next steps

    def begin(self) -> None:
        """Forget the current step."""
        self._waiting, self._rows, self.changes, self.put_back = {}, [], {}, {}

    def free(self) -> None:
        """Let the memory of the copies go, as the next steps are not measured."""
        self._known_rows = []

    @torch.no_grad()
    def keep(
        self, params: Mapping[str, nn.Parameter], scalars: DeviceScalars, ranks: Ranks | None = None
    ) -> dict[str, int]:
        """Copy the weights of an optimizer's parameters, just before it steps.

        What is kept already stays: a closure (LBFGS) evaluates the loss many times within one step.

        Returns:
            Parameter -> slot of the norm of its weights, as far as copying them has told it.
        """
        self._look_at_suspects(params, scalars)
        room = self._bound - sum(_size(kept.before) for kept in self._waiting.values() if not kept.blocks)
        room -= sum(copies.nbytes for copies, _ in self._rows)
        known = self._waiting.keys() | {name for copies, _ in self._rows for name in copies.names}
        missing = {name: param for name, param in params.items() if name not in known} if known else params
        copies = self._copies_of(missing, room)
        if copies is None:
            self._keep_others(missing, room, ranks)
            return {}
        norms = scalars.values(torch.from_numpy(copies.take()))
        self._rows.append((copies, [1.0 if ranks is None else ranks.share(params[name]) for name in copies.names]))
        copied = set(copies.names)
        others = {name: param for name, param in missing.items() if name not in copied}
        self._keep_others(others, room - copies.nbytes, ranks)
        return dict(zip(copies.names, norms, strict=True))

    def _copies_of(self, params: Mapping[str, nn.Parameter], room: int) -> HostCopies | None:
        """Return the memory for the parameters that can be copied into one row; None where none can, or not all fit."""
        for copies in self._known_rows:
            if copies.nbytes <= room and copies.are_of(params):
                return copies
        chosen = {name: param for name, param in params.items() if can_be_copied(param)}
        if not chosen or sum(map(_size, chosen.values())) > room:
            return None
        for copies in self._known_rows:
            if copies.are_of(chosen):
                return copies
        self._known_rows = [*self._known_rows[-_MOST_ROWS:], HostCopies(chosen)]
        return self._known_rows[-1]

    def _keep_others(self, params: Mapping[str, nn.Parameter], room: int, ranks: Ranks | None) -> None:
        """Copy parameters one by one: those of a device, of half precision, or a sample of what has no room."""
        missing = [(name, stored_values(param)) for name, param in params.items()]
        fitting, blocks = len(missing), _BLOCKS
        if sum(_size(values) for _, values in missing) > room:
            missing.sort(key=lambda item: item[1].numel())  # a sample is best of the largest
            sizes = np.cumsum([_size(values) for _, values in missing])
            fitting = int(np.searchsorted(sizes, room, side="right"))
            blocks = _blocks_of(len(missing) - fitting)
        for place, (name, values) in enumerate(missing):
            share = 1.0 if ranks is None else ranks.share(params[name])
            if place < fitting or values.numel() <= blocks * _WIDTH:
                self._waiting[name] = Kept(params[name], values.clone(), 0, 1.0, share)
            else:
                sample = sample_of(values, blocks).clone()
                self._waiting[name] = Kept(params[name], sample, blocks, values.numel() / sample.numel(), share)

    @torch.no_grad()
    def measure(self, scalars: DeviceScalars) -> None:
        """Measure what has changed in the parameters that were kept, and let the copies go."""
        rows, self._rows = self._rows, []
        for copies, shares in rows:
            self._measure_row(copies, shares, scalars)
        waiting, self._waiting = self._waiting, {}
        now = {name: after for name, kept in waiting.items() if (after := kept.after()) is not None}
        names = list(now)
        for positions, befores in batches([waiting[name].before for name in names]):
            afters = [now[names[position]] for position in positions]
            is_narrow = befores[0].itemsize < 4
            # The copies become the differences, so no third one of the weights is needed.
            differences = [before.float() for before in befores] if is_narrow else befores
            foreach_sub_(differences, [after.float() for after in afters] if is_narrow else afters)
            norms, counts = norms_and_nonzero_counts(differences) if is_narrow else (l2_norms(differences), None)
            slots = scalars.values(norms)
            changed = [None] * len(slots) if counts is None else scalars.values(counts)
            for position, norm, count in zip(positions, slots, changed, strict=True):
                kept = waiting[names[position]]
                entries = float(kept.before.numel())
                self.changes[names[position]] = Change(norm, count, entries, kept.whole, kept.share)

    def _measure_row(self, copies: HostCopies, shares: Sequence[float], scalars: DeviceScalars) -> None:
        changes = copies.changes()
        known = ~np.isnan(changes)
        slots = scalars.values(torch.from_numpy(changes))
        for name, share, slot, is_known in zip(copies.names, shares, slots, known.tolist(), strict=True):
            if is_known:
                self.changes[name] = Change(slot, None, 0.0, 1.0, share)

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
