"""Parameters that have a gradient, and whose weights do not change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gradwatch.checks import require_positive, require_whole
from gradwatch.records import Array, Finding, Snapshot, some_of

# Distance of 1 to the next larger number. An update of less than half of it, times a weight, is rounded away; as
# weights lie anywhere between two powers of two, a quarter of it is what is surely lost.
_SPACING: Mapping[str, float] = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_SURELY_LOST = 0.25
_CLEARLY = 16.0  # an update that is so many times what is surely lost would show in nearly all entries
_SAME = 1e-6  # of a norm: the rounding of its sum
# In the names of optimizers that divide a gradient by its own size: they move each entry by about the learning rate.
_SELF_SCALING = ("adam", "lion", "rmsprop", "adagrad", "lamb")
_EPSILON = 1e-8  # torch's in Adam and RMSprop; a gradient far below it moves nothing
_IN_WORDS: Mapping[str, str] = {
    "no optimizer": "no optimizer holds them",
    "rate zero": "their learning rate is zero",
    "skipped": "each step was skipped",
    "rounded away": "their updates are smaller than their type can hold",
    "put back": "something puts their weights back after each step",
    "no effect": "the optimizer's step changes nothing",
}


@dataclass
class Unmoved:
    """Parameters have a gradient, and their weights do not change: exactly, or by less than their type can hold.

    The finding's ``case`` says why: ``no optimizer`` holds them; ``rate zero``; each step was ``skipped``; their
    updates are ``rounded away``; something ``put back`` their weights; or the step has ``no effect``. Parameters that
    have moved since the run began are at rest, and no finding: a schedule may end at zero. Nor are those whose gradient
    is zero, or so small that no update could show. In bfloat16 and float16 most entries may be rounded away while a few
    still move: that is a finding only while the loss does not fall and the learning rate does not rise.

    Args:
        steps: measured steps of a parameter in a row until it is a finding.
        skipped_steps: the same for steps that a loss scaler skips: it looks for its scale at first.
        left_out_steps: the same for parameters in no optimizer: it may come to its turn later.
        changed: share of a parameter's entries in half precision; with less, it counts as rounded away.
        gradient: gradient over weight; where it is smaller, it is not the step that is too small.

    Raises:
        ValueError: when an argument is not positive.

    Example:
        >>> still = {"params": ("fc.weight",), "param_grad_norm": [1.0], "param_weight_norm": [2.0]}
        >>> still |= {"param_update_norm": [0.0], "param_groups": ["SGD 0"], "groups": ["SGD 0"]}
        >>> unmoved = Unmoved(steps=2)
        >>> for step in range(2):
        ...     found = list(unmoved(Snapshot(step, (), group_learning_rate=[0.0], **still)))
        >>> found[0].layers, found[0].case
        (('fc.weight',), 'rate zero')

    References:
        Zamirai et al., Revisiting BFloat16 Training (2010.06192): updates under half the spacing of weights are lost.
    """

    needs: ClassVar[tuple[str, ...]] = ("updates",)
    steps: int = 10
    skipped_steps: int = 18
    left_out_steps: int = 20
    changed: float = 0.5
    gradient: float = 1e-4
    _first: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # norms of the weights
    _known: tuple[str, ...] = field(default=(), init=False, repr=False)
    _moved: set[str] = field(default_factory=set, init=False, repr=False)
    _counts: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _since: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _rates: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _losses: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole(self, steps=self.steps, skipped_steps=self.skipped_steps, left_out_steps=self.left_out_steps)
        require_positive(self, changed=self.changed, gradient=self.gradient)

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one finding for each reason."""
        self._note_losses(snapshot)
        by_case: dict[str, list[str]] = defaultdict(list)
        still = self._still(snapshot) | dict.fromkeys(snapshot.left_out if snapshot.params else (), "no optimizer")
        for name in [name for name in self._counts if name in snapshot.params or name in snapshot.left_out]:
            if name not in still:
                del self._counts[name]
        for name in still:
            self._counts[name] = self._counts.get(name, 0) + 1
            if self._counts[name] == 1:
                self._since[name] = snapshot.step
        longer = {"skipped": self.skipped_steps, "no optimizer": self.left_out_steps}
        for name, case in still.items():
            if self._counts[name] >= longer.get(case, self.steps):
                by_case[case].append(name)
        for case, names in by_case.items():
            if case == "rounded away" and self._learns and self._changes_some(snapshot, names):
                continue  # what is left of the steps is enough
            yield _finding(snapshot, case, names, min(self._since[name] for name in names))

    def _still(self, snapshot: Snapshot) -> dict[str, str]:
        """Return the parameters that this step did not move, and why."""
        rates, asked, lost = rates_of(snapshot), asked_updates(snapshot), _SURELY_LOST * _spacings(snapshot)
        if snapshot.params != self._known:
            self._known = snapshot.params
            for name, weight in zip(snapshot.params, snapshot.param_weight_norm.tolist(), strict=True):
                self._first.setdefault(name, weight)
        # Nearly always all parameters move, so the few that may not are looked at one by one.
        clearly = (snapshot.param_update_norm > _CLEARLY * lost) & np.isnan(snapshot.param_put_back)
        found: dict[str, str] = {}
        for place in np.flatnonzero(~(clearly & np.isnan(snapshot.param_changed))).tolist():
            name = snapshot.params[place]
            rate, before = float(rates[place]), self._rates.get(name, np.inf)
            self._rates[name] = rate
            self._note_moved(snapshot, place, float(lost[place]))
            case = self._case(snapshot, place, rate, float(asked[place]), float(lost[place]))
            if case == "rounded away":
                is_large = snapshot.param_grad_norm[place] > self.gradient * snapshot.param_weight_norm[place]
                is_at_rest = name in self._moved and not self._changes_some(snapshot, [name])
                case = case if is_large and not (rate > before or is_at_rest) else ""
            elif name in self._moved:
                case = ""
            if case:
                found[name] = case
        return found

    def _note_moved(self, snapshot: Snapshot, place: int, lost: float) -> None:
        name, weight = snapshot.params[place], float(snapshot.param_weight_norm[place])
        first = self._first[name]
        # A step that moves it is not enough: it may be put back. Where that is suspected, its norm is the same.
        stays = snapshot.param_put_back[place] == 0 and snapshot.param_update_norm[place] > lost
        if stays or abs(weight - first) > max(lost, _SAME * first):
            self._moved.add(name)

    def _case(self, snapshot: Snapshot, place: int, rate: float, asked: float, lost: float) -> str:
        """Return why a step did not move a parameter; empty where it did, or had nothing to move it by."""
        grad, update = snapshot.param_grad_norm[place], snapshot.param_update_norm[place]
        if not grad > 0 or np.isnan(update):
            return ""
        if update == 0 and snapshot.skipped:
            return "skipped"
        if not np.isfinite(grad + update) or snapshot.total_norm_after == 0:  # no gradient left, after a transform
            return ""
        if snapshot.param_put_back[place] == 1 and update > _CLEARLY * lost:
            return "put back"
        if update == 0 and rate == 0:
            return "rate zero"
        if update == 0 and asked > _CLEARLY * lost:
            return "no effect"
        changed = snapshot.param_changed[place]
        is_lost = update <= lost if np.isnan(changed) else changed < self.changed
        return "rounded away" if is_lost else ""

    @staticmethod
    def _changes_some(snapshot: Snapshot, names: list[str]) -> bool:
        """Return True if some entries of parameters in half precision still change."""
        places = [snapshot.params.index(name) for name in names]
        return bool((snapshot.param_changed[places] > 0).any())

    def _note_losses(self, snapshot: Snapshot) -> None:
        self._losses += [float(loss) for loss in snapshot.trace_loss if np.isfinite(loss)]
        del self._losses[10:-10]

    @property
    def _learns(self) -> bool:
        """Return True if the loss has fallen, or is not known."""
        if len(self._losses) < 10:
            return True
        return float(np.median(self._losses[-5:])) < 0.9 * float(np.median(self._losses[:3]))

    def state_dict(self) -> dict[str, Any]:
        """The first norms of the weights, the counts, and what the rates and losses were, for a checkpoint."""
        known = {"first": self._first, "counts": self._counts, "rates": self._rates, "losses": self._losses}
        return {"moved": sorted(self._moved), "since": self._since, **known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what an earlier run knows."""
        self._first, self._counts, self._moved = dict(state["first"]), dict(state["counts"]), set(state["moved"])
        self._since = dict(state["since"])
        self._rates, self._losses = dict(state["rates"]), list(state["losses"])


def rates_of(snapshot: Snapshot) -> Array:
    """Return the learning rate of each parameter's group; NaN where it is unknown."""
    by_group = dict(zip(snapshot.groups, snapshot.group_learning_rate.tolist(), strict=True))
    groups = snapshot.param_groups or ("",) * len(snapshot.params)
    return np.array([by_group.get(group, np.nan) for group in groups], np.float64)


def asked_updates(snapshot: Snapshot) -> Array:
    """Return the norm of the update that the optimizer was asked for, without momentum; NaN where it is unknown.

    An optimizer that divides a gradient by its own size moves each entry by about the learning rate, unless it is small
    beside the epsilon that is added to its size.
    """
    coefficient = snapshot.clip_coefficient if np.isfinite(snapshot.clip_coefficient) else 1.0
    rates = rates_of(snapshot)
    groups = snapshot.param_groups or ("",) * len(snapshot.params)
    scales_itself = np.array([any(kind in group.lower() for kind in _SELF_SCALING) for group in groups], np.bool_)
    scaled = np.minimum(snapshot.param_grad_norm, _EPSILON * np.sqrt(snapshot.param_size)) / _EPSILON
    asked: Array = rates * np.where(scales_itself, scaled, coefficient * snapshot.param_grad_norm)
    return asked


def _spacings(snapshot: Snapshot) -> Array:
    """Return the distance between neighbouring numbers of each parameter's type, times the norm of its weights."""
    dtypes = snapshot.param_dtypes or ("float32",) * len(snapshot.params)
    spacing: Array = np.array([_SPACING.get(dtype, 0.0) for dtype in dtypes]) * snapshot.param_weight_norm
    return spacing


def _finding(snapshot: Snapshot, case: str, names: list[str], since: int) -> Finding:
    places = [snapshot.params.index(name) for name in names if name in snapshot.params]
    weights = np.where(snapshot.param_weight_norm > 0, snapshot.param_weight_norm, np.nan)[places]
    ratios = snapshot.param_update_norm[places] / weights
    value = float(np.nanmax(ratios)) if np.isfinite(ratios).any() else 0.0
    threshold, more = 0.0, ""
    if case == "rounded away":
        threshold = float(np.nanmax(_spacings(snapshot)[places] / weights)) / 2
        more = f" ({_shortfall(snapshot, places, weights, threshold)})"
    message = f"unmoved: no change of {some_of(names)}, in spite of a gradient: {_IN_WORDS[case]}{more}."
    return Finding("unmoved", tuple(names), since, value, threshold, message, case=case)


def _shortfall(snapshot: Snapshot, places: list[int], weights: Array, threshold: float) -> str:
    """Return in words by how much the updates are too small for the type of the weights."""
    dtype = snapshot.param_dtypes[places[0]] if snapshot.param_dtypes else "float32"
    parts = [f"{dtype} loses changes under {threshold:.1e} of a weight"]
    changed = snapshot.param_changed[places]
    if np.isfinite(changed).any():
        parts.append(f"{np.nanmean(changed):.1%} of the entries change")
    asked = asked_updates(snapshot)[places] / weights
    known = asked[np.isfinite(asked) & (asked > 0)]
    if len(known):
        parts.append(
            f"the steps ask for {np.median(known):.1e}, {threshold / float(np.median(known)):.2g} times too little"
        )
    return "; ".join(parts)
