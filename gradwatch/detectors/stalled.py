"""Parameters that should learn and can't."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gradwatch.checks import require_share, require_whole
from gradwatch.paths import beside_the_way
from gradwatch.progress import Learning
from gradwatch.records import Array, Finding, Snapshot

_MEASURED = 10  # steps of a part without a gradient
_MOST = 0.5  # of the entries of all parameters
# Rounding leaves so much of a gradient that cancels, per entry and as a share of the largest parameter's: float32 keeps
# 6e-8 of a number.
_ROUNDING = 1e-8


@dataclass
class Stalled:
    """Parameters of the optimizer get no gradient, or one that is exactly zero.

    The usual reasons are a detached branch, or a head that gives no gradient (a softmax over one unit). These
    parameters are only at rest, and no finding:

    - one that had a gradient before (an expert, the head of another task), unless nearly all are without;
    - one whose name differs by a number from others that come and go: an expert that was not drawn yet;
    - a bias alone, whose layer's weight has a gradient: it cancels in a difference, a normalization or a softmax;
    - one of a layer beside the way to the loss: never called, as many a library's model has some, an output that the
      loss leaves out, or a softmax over a single variable. The summary notes it as unused. These are a finding, of case
      ``unused``, only where the run does not learn, or where they are most of the model and the loss has not come down
      by half.

    A step in which no parameter has a gradient is :class:`CutOff`'s.

    Args:
        share: of the parameters; where more are without a gradient, those that had one before count too.
        steps: optimizer steps until it is a finding, of which at least 10 are measured, or all where these are fewer: a
            head that is used in one batch out of several, tasks that take turns in blocks of steps, and a branch that
            starts at zero (ReZero, LoRA), are healthy. Where most of the model is cut off, 10 are enough.

    Raises:
        ValueError: when a setting is not positive, or the share is above 1.

    Example:
        >>> snapshot = Snapshot(0, (), params=("a.weight", "b.weight"), param_grad_norm=[0.0, 1.0])
        >>> [finding.layers for finding in Stalled(steps=1)(snapshot)]
        [('a.weight',)]

    References:
        No published rule; the default is longer than the blocks of 30 steps in which tasks are trained by turns.
    """

    needs: ClassVar[tuple[str, ...]] = ("updates",)
    share: float = 0.9
    steps: int = 40
    _moved: set[str] = field(default_factory=set, init=False, repr=False)
    _lacked: set[str] = field(default_factory=set, init=False, repr=False)
    _cut: set[str] = field(default_factory=set, init=False, repr=False)  # lacked one though no layer beside the way
    _since: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)  # step, measured steps
    _learning: Learning = field(default_factory=Learning, init=False, repr=False)

    def __post_init__(self) -> None:
        require_share(self, share=self.share)
        require_whole(self, steps=self.steps)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all without a gradient."""
        self._learning.add(snapshot)
        norms = snapshot.param_grad_norm
        if np.isnan(norms).all():
            return
        stalled = self._stalled(snapshot)
        beside = beside_the_way(snapshot) if len(stalled) else np.zeros(0, np.bool_)
        self._cut.update(snapshot.params[i] for i in stalled if not beside[i])
        soon = min(self.steps, _MEASURED) if _is_most(snapshot, stalled) else self.steps
        cut: list[int] = []
        unused: list[int] = []
        for place in stalled:
            is_cut = snapshot.params[place] in self._cut
            if self._is_ripe(snapshot, place, soon if is_cut else self.steps):
                (cut if is_cut else unused).append(place)
        if cut:
            names = tuple(snapshot.params[i] for i in cut)
            none = int(np.isnan(norms[cut]).sum())
            yield self._finding(snapshot, names, f"no gradient ({none} None, {len(names) - none} exactly zero)", "")
        if unused and not cut and self._does_harm(snapshot, unused):
            names = tuple(snapshot.params[i] for i in unused)
            yield self._finding(snapshot, names, "no gradient, as nothing on the way to the loss uses them", "unused")

    def _stalled(self, snapshot: Snapshot) -> list[int]:
        """Return the places of the parameters that have no gradient and are not at rest."""
        norms = snapshot.param_grad_norm
        without = np.isnan(norms) | (norms == 0)
        for place in np.flatnonzero(norms == 0).tolist():
            without[place] = not _cancels(place, snapshot.params, norms)
        self._moved.update(snapshot.params[i] for i in np.flatnonzero(~(without | _is_rounding(snapshot))))
        stalled = np.flatnonzero(without)
        self._lacked.update(snapshot.params[i] for i in stalled)
        if without.any() and without.mean() < self.share:
            rotating = {pattern for name in self._moved & self._lacked for pattern in _patterns(name)}
            rests = [n in self._moved or any(p in rotating for p in _patterns(n)) for n in snapshot.params]
            stalled = np.flatnonzero(without & ~np.array(rests, bool))
        found: list[int] = stalled.tolist()
        names = [snapshot.params[i] for i in found]
        before = self._since
        self._since = {
            name: (first, count + 1) for name in names for first, count in [before.get(name, (snapshot.step, 0))]
        }
        return found

    def _is_ripe(self, snapshot: Snapshot, place: int, steps: int) -> bool:
        first, count = self._since[snapshot.params[place]]
        return snapshot.step - first + 1 >= steps and count >= min(steps, _MEASURED)

    def _does_harm(self, snapshot: Snapshot, unused: Sequence[int]) -> bool:
        judged = self._learning.judge(is_suspect=True)
        return judged.course == "not learning" or (_is_most(snapshot, unused) and not judged.fell_by())

    def _finding(self, snapshot: Snapshot, names: tuple[str, ...], what: str, case: str) -> Finding:
        message = (
            f"stalled: {len(names)} of {len(snapshot.params)} parameters get {what}, among them {', '.join(names[:3])}."
        )
        since = min(self._since[name][0] for name in names)
        return Finding("stalled", names, since, float(len(names)), 0.0, message, case=case)

    def state_dict(self) -> dict[str, Any]:
        """The parameters that had a gradient, those that had none and since when, for a checkpoint."""
        known = {"moved": sorted(self._moved), "lacked": sorted(self._lacked), "cut": sorted(self._cut)}
        since = {name: list(entry) for name, entry in self._since.items()}
        return {**known, "since": since, "learning": self._learning.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._moved, self._lacked = set(state["moved"]), set(state["lacked"])
        self._cut = set(state["cut"])
        self._since = {name: (first, count) for name, (first, count) in state["since"].items()}
        self._learning.load_state_dict(state["learning"])


def _is_most(snapshot: Snapshot, places: Sequence[int]) -> bool:
    """Return True if some parameters hold most entries of all."""
    sizes = snapshot.param_size
    return bool(np.nansum(sizes[list(places)]) > _MOST * np.nansum(sizes))


@dataclass
class CutOff:
    """No parameter gets a gradient, or the optimizer holds none of the model's parameters: nothing can learn.

    An optimizer that moves weights without gradients (one that perturbs them, say) is no finding.

    Args:
        patience: measured steps in a row until it is a finding.

    Raises:
        ValueError: when the patience is not positive.

    Example:
        >>> snapshot = Snapshot(0, (), params=("weight", "bias"), param_grad_norm=[np.nan, np.nan])
        >>> [finding.layers for finding in CutOff()(snapshot)]
        [('weight', 'bias')]
    """

    needs: ClassVar[tuple[str, ...]] = ("updates",)
    patience: int = 3

    def __post_init__(self) -> None:
        require_whole(self, patience=self.patience)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for all that should learn."""
        if not (snapshot.params or snapshot.left_out):
            yield from _all_frozen(snapshot)
            return
        names = snapshot.params or snapshot.left_out
        is_cut_off = np.isnan(snapshot.param_grad_norm).all() and not (snapshot.param_update_norm > 0).any()
        if not is_cut_off:
            return
        some = f"among them {', '.join(names[:3])}"
        if snapshot.params:
            what, case = f"none of the {len(names)} parameters gets a gradient, {some}", "no gradient"
        else:
            what = f"the optimizer holds none of the {len(names)} parameters of the model that should learn, {some}"
            case = "no optimizer"
        yield Finding("stalled", names, snapshot.step, float(len(names)), 0.0, f"stalled: {what}.", case=case)


_ADAPTER = re.compile(r"\b(lora|ia3|adapter|prompt_encoder|vera|oft|hada|lokr)_?", re.IGNORECASE)  # names of PEFT's


def _all_frozen(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield a finding for a training of nothing: no optimizer holds anything that requires a gradient."""
    if not (snapshot.frozen_size > 0 and snapshot.layers) or snapshot.skipped:
        return
    adapters = tuple(layer for layer in snapshot.layers if _ADAPTER.search(layer))
    some = f", those of the adapters among them, such as {adapters[0]}" if adapters else ""
    what = f"all {snapshot.frozen_size:,.0f} entries of the parameters are frozen{some}, and the optimizer holds none"
    layers = adapters or snapshot.layers
    yield Finding("stalled", layers, snapshot.step, float(len(layers)), 0.0, f"stalled: {what}.", case="frozen")


def _is_rounding(snapshot: Snapshot) -> npt.NDArray[np.bool_]:
    """Return True for each parameter whose gradient is no more than rounding beside the largest: it got none."""
    norms, sizes = snapshot.param_grad_norm, snapshot.param_size
    per_entry = norms / np.sqrt(np.where((sizes > 0) & np.isfinite(sizes), sizes, 1.0))
    usable = per_entry[np.isfinite(per_entry)]
    return np.asarray(per_entry < _ROUNDING * (usable.max() if len(usable) else 0.0), np.bool_)


def _cancels(place: int, names: tuple[str, ...], norms: Array) -> bool:
    """Return True if a parameter is the bias of a layer whose weight has a gradient."""
    weight = names[place].removesuffix("bias") + "weight"
    return names[place].endswith("bias") and weight in names and bool(norms[names.index(weight)] > 0)


def _patterns(name: str) -> list[str]:
    """Return the name with one of its numbers left open, for each number.

    Example:
        >>> _patterns("experts.3.0.weight")
        ['experts.*.0.weight', 'experts.3.*.weight']
    """
    parts = name.split(".")
    return [".".join([*parts[:i], "*", *parts[i + 1 :]]) for i, part in enumerate(parts) if part.isdigit()]
