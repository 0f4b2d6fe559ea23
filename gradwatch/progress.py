"""The course of the loss: whether a run learns, beyond the noise of its own losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradwatch.plain_values import of_type
from gradwatch.records import Finding
from gradwatch.snapshot import Array, Snapshot

Course = Literal["learns", "not learning", "too few steps", "no loss"]

# Share of the first losses that is gone in a run that does well. Half: of the programs of tests/benchmarks/detection
# (half "develop") and tests/benchmarks/blind that do harm and have such a finding, the best but one loses 0.44.
DOES_WELL = 0.5

_BLOCKS = 64  # kept; when there are more, neighbours are merged
_TO_SEE_LEARNING = 6  # losses
_PART = 16  # blocks at the start and at the end, at the most; at least one, and a quarter in between
# Standard errors. Of 4,800 rows of 10 to 1,000 losses that are noise alone, even or skewed, 8 seem to come down (as in
# tests/test_progress.py, with fewer).
_BEYOND_NOISE, _TREND = 4.0, 3.0
_LEAST_FALL = 2e-3  # of the start: a loss that comes down by less in so many steps makes no progress that helps
BELOW_CHANCE = 0.98  # of the loss of a constant prediction
_WELL_BELOW_CHANCE = 0.8  # a run that starts there has learned before

# Losses that are needed to say that a run does not learn. Where the updates are as large as the weights, a rest before
# the loss comes down is not to be expected; where they are next to nothing, 60 steps change nothing. Else a plateau may
# come first.
_TO_SEE_NONE, _ON_A_PLATEAU, _WITH_LARGE_UPDATES = 60, 300, 20
_HUGE_UPDATE, _TINY_UPDATE = 1.0, 1e-6  # over the weights, in the median layer and in any; about 1e-3 is usual
_LARGE_RMS = 0.02  # of an update; initial weights of a layer of 100 to 1,000 inputs have 0.03 to 0.1
_FIRST_STEPS = 10
_SOUND_GRADIENT = 1e-4  # over the weights: a converged or a dead network has less
_RATE_GROWS = 1.05  # a rate that has grown so much since it was last noted is on its way up
_FIRST_CHANCES, _LATEST_CHANCES, _ENOUGH_LATER = 16, 16, 4  # batches that tell the loss of a constant prediction
_SAME_TARGETS = 2.0  # times; of 4 batches of 8 normal targets, the variances differ by more in one of 35 cases
_SEEN_FROM_START = 10  # steps: a run that is first seen later has been resumed


@dataclass(frozen=True)
class Judgement:
    """The state of the loss after some steps.

    Attributes:
        course: ``learns``: the loss has come down beyond its own noise. ``not learning``: enough steps were made, and
            it has not. ``too few steps``: neither can be said yet. ``no loss``: none is known, or it is no measure of
            progress.
        steps, needed: losses that are known, and how many are needed to say that a run does not learn.
        start, now: typical loss of the first steps and of the latest.
        noise: standard error of the difference of these two.
        chance: the loss of a constant prediction; NaN where it is not known.
    """

    course: Course
    steps: int
    needed: int
    start: float = float("nan")
    now: float = float("nan")
    noise: float = float("nan")
    chance: float = float("nan")

    def fell_by(self, share: float = DOES_WELL) -> bool:
        """Return True for a run that learns and has lost more than this share of its first losses."""
        return self.course == "learns" and self.start - self.now > share * abs(self.start)

    def __str__(self) -> str:
        if self.course == "too few steps":
            return f"too few steps to tell whether it learns: {self.steps} of {self.needed}"
        if np.isnan(self.now):
            return "no loss known"
        change = f"loss {self.start:.3g} -> {self.now:.3g}"
        if self.course == "learns":
            return f"{change} (learns)"
        if self.course == "no loss":
            return f"{change} (not judged)"
        known = f"; a constant prediction has {self.chance:.3g}" if self.chance == self.chance else ""
        return f"not learning: {change} in {self.steps} steps{known}"


class Progress:
    """Takes in the losses of a run in order, and judges its course. The memory is bounded: means of 64 to 128 blocks.

    The means are of ``asinh(loss / scale)``: like logarithms they hold no outlier against a block, and the mean of two
    blocks is that of their losses. With medians, a skewed noise would seem to fall as blocks get longer.

    Example:
        >>> progress = Progress()
        >>> progress.add(np.linspace(2.0, 0.5, 40))
        >>> progress.judge().course
        'learns'
    """

    def __init__(self) -> None:
        self._means: list[float] = []
        self._open: list[float] = []  # losses of the block that is not full
        self._width = 1
        self._count = 0
        self._scale = 0.0

    def add(self, losses: Iterable[float]) -> None:
        """Take in losses, one for each optimizer step; those that are not finite are left out."""
        for loss in losses:
            if not np.isfinite(loss):
                continue
            self._count += 1
            self._scale = self._scale or _SCALE * abs(float(loss))
            self._open.append(float(np.arcsinh(loss / self._scale)) if self._scale else 0.0)
            if len(self._open) == self._width:
                self._means.append(float(np.mean(self._open)))
                self._open = []
            if len(self._means) == 2 * _BLOCKS:
                self._means = [(a + b) / 2 for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
                self._width *= 2

    def judge(self, needed: int = _TO_SEE_NONE, chance: float = float("nan"), *, may_rise: bool = True) -> Judgement:
        """Return the judgement of all losses so far.

        Args:
            needed: losses from which on a run that has not learned is said not to learn.
            chance: the loss of a constant prediction, where it is known. A loss that has come down to it, and stays
                there, has not learned; nor is a loss that starts well below it asked to come down.
            may_rise: a loss that has been below its start, and is no longer, is no measure of progress.
        """
        if not self._count:
            return Judgement("no loss", 0, needed)
        scale, row = self._scale, np.array(self._means)
        part = max(1, min(len(row) // 4, _PART))
        ends = np.array([np.median(row[:part]), np.median(row[-part:])])
        start, now = (float(value) for value in scale * np.sinh(ends))
        relative = _spread(row) * (2 / part) ** 0.5
        noise = relative * float(np.hypot(max(abs(start), abs(now)), scale))
        known = Judgement("too few steps", self._count, needed, start, now, noise, chance)
        at_chance = bool(start >= _WELL_BELOW_CHANCE * chance and now > BELOW_CHANCE * chance)
        # The first loss is that of the untrained network: what has jumped up and comes down to it has learned nothing.
        if ends[0] > row[0] and ends[1] >= row[0] + relative:
            known = replace(known, start=scale * float(np.sinh(row[0])))
        if self._count >= _TO_SEE_LEARNING and _comes_down(row, known):
            rests = at_chance and not _trend(row[len(row) // 2 :]) < -_TREND
            if not rests:
                return replace(known, course="learns")
            return replace(known, course="not learning" if self._count >= needed else "too few steps")
        if row.min() < 0:
            return replace(known, course="no loss")
        if self._count < needed:
            return known
        if start < _WELL_BELOW_CHANCE * chance:
            return replace(known, course="no loss")
        return replace(
            known, course="no loss" if may_rise and _was_below(scale * np.sinh(row), part, known) else "not learning"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._means, self._open = list(state["means"]), list(state["open"])
        self._width, self._count = of_type(int, state["width"]), of_type(int, state["count"])
        self._scale = of_type(float, state["scale"])


_SCALE = 0.1  # of the first loss: the size from which on losses count by their logarithm
_STATE = ("means", "open", "width", "count", "scale")


def _spread(row: Array) -> float:
    """Return the deviation of the losses around their course, from those that follow each other."""
    steps = np.abs(np.diff(row))
    return float(np.median(steps)) * 1.4826 / 2**0.5 if len(steps) else float("inf")


def _comes_down(row: Array, known: Judgement) -> bool:
    fall = known.start - known.now
    if not fall > _LEAST_FALL * abs(known.start):
        return False
    return fall > _BEYOND_NOISE * known.noise or _trend(row) < -_TREND


def _was_below(row: Array, part: int, known: Judgement) -> bool:
    """Return True if the loss has been below its start and has risen since, as some losses do by nature."""
    typical = np.array([np.median(row[i : i + part]) for i in range(len(row) - part + 1)])
    if typical.min() >= _WELL_BELOW_CHANCE * known.chance:  # it has fallen no further than to chance
        return False
    return bool(known.start - typical.min() > max(_BEYOND_NOISE * known.noise, _LEAST_FALL * abs(known.start)))


def _trend(row: Array) -> float:
    """Return Kendall's S of a row over its deviation: below -3 for a row that falls, whatever its noise looks like.

    References:
        H. B. Mann, Nonparametric tests against trend, Econometrica 13, 1945.

    Example:
        >>> round(_trend(np.arange(10.0)), 2)
        4.02
    """
    count = len(row)
    if count < _TO_SEE_LEARNING:
        return 0.0
    score = np.triu(np.sign(row[None, :] - row[:, None])).sum()
    return float(score / (count * (count - 1) * (2 * count + 5) / 18) ** 0.5)


class Learning:
    """Judges the measured steps of a run: its losses, and what its updates say of how many steps are needed.

    Example:
        >>> losses = np.full(80, 2.3) + 0.01 * np.random.default_rng(0).normal(size=80)
        >>> run = [Snapshot(79, ("fc",), update_to_weight=[1e-9], grad_norm=[1.0], weight_norm=[1.0],
        ...                 trace_step=range(80), trace_loss=losses)]
        >>> str(judge_run(run))
        'not learning: loss 2.3 -> 2.3 in 80 steps'
    """

    def __init__(self, chance: float = float("nan")) -> None:
        self.progress, self._given = Progress(), chance
        self._chances: list[float] = []  # logarithms, of the first batches that tell it, and of the latest
        self._of_classes = False
        self._first_step = -1
        self._count = 0
        # Update over weight: that of the median layer, the largest of the first steps; and the largest of any layer.
        self._largest = self._latest = 0.0
        self._gradient = 0.0
        self._rate, self._grew_at = float("nan"), 0
        self._optimizers: set[str] = set()
        # A parameter of the first measured step; where a later step is without it, optimizers take turns (a GAN).
        self._param, self._takes_turns = "", False
        self._diverged = False

    def add(self, snapshot: Snapshot) -> None:
        """Take in a Snapshot and the losses that it brings."""
        losses = snapshot.trace_loss if len(snapshot.trace_loss) else np.array([snapshot.loss])
        if self._first_step < 0:
            self._first_step = int(snapshot.trace_step[0]) if len(snapshot.trace_step) else snapshot.step
        if snapshot.chance > 0:
            self._chances = [*self._chances[:_FIRST_CHANCES], *self._chances[_FIRST_CHANCES:][1 - _LATEST_CHANCES :]]
            self._chances.append(math.log(snapshot.chance))
            self._of_classes = bool(snapshot.classes > 1)  # not of NumPy: it goes into checkpoints
        self._diverged = self._diverged or bool(np.isinf(losses).any())
        self.progress.add(losses)
        self._count += int(np.isfinite(losses).sum())
        if not snapshot.layers:
            return
        gradient = _median(snapshot.grad_to_weight_ratio)
        # Weights that start at zero (a head, LoRA) grow by a large factor in small steps.
        is_small = snapshot.update_norm <= _LARGE_RMS * np.sqrt(snapshot.size)
        update = _median(np.where(is_small, 0.0, snapshot.update_to_weight))
        if snapshot.step < _FIRST_STEPS:
            self._largest = max(self._largest, update)
        self._latest = max(self._latest, _largest(snapshot.update_to_weight))
        self._gradient = max(self._gradient, gradient)
        self._optimizers |= {group.rpartition(" ")[0] for group in snapshot.groups} or {snapshot.optimizer} - {""}
        self._param = self._param or (snapshot.params or ("",))[0]
        self._takes_turns = self._takes_turns or bool(snapshot.params and self._param not in snapshot.params)
        if not snapshot.learning_rate <= _RATE_GROWS * self._rate:
            grew = self._rate == self._rate
            self._rate = snapshot.learning_rate
            self._grew_at = self._count if grew else 0

    @property
    def chance(self) -> float:
        """The loss of a constant prediction, in the mean over the batches that tell it.

        NaN where none does, or where the targets are others than at the start, such as those of a critic.
        """
        if not self._chances:
            return self._given
        first, latest = self._chances[:_FIRST_CHANCES], self._chances[_FIRST_CHANCES:]
        if len(latest) >= _ENOUGH_LATER and abs(np.mean(latest) - np.mean(first)) > math.log(_SAME_TARGETS):
            return math.nan
        return math.exp(float(np.mean(self._chances)))

    @property
    def is_one_loss(self) -> bool:
        """Return True unless several optimizers step, each with a loss of its own (a GAN, an actor and a critic)."""
        return len(self._optimizers) < 2 and not self._takes_turns

    def judge(self, *, is_suspect: bool = False) -> Judgement:
        """Return the judgement of all steps so far; ``is_suspect`` where something else was found, so no plateau."""
        huge = self._largest > _HUGE_UPDATE
        is_sound = self._gradient > _SOUND_GRADIENT or self.chance == self.chance
        tiny = is_suspect or (self._latest < _TINY_UPDATE and is_sound)
        needed = _WITH_LARGE_UPDATES if huge else _TO_SEE_NONE if tiny else _ON_A_PLATEAU
        needed += self._grew_at
        if self._latest < _TINY_UPDATE:  # a warm-up that moves nothing in so many steps will not end in time
            needed = min(needed, _ON_A_PLATEAU)
        found = self.progress.judge(needed, self.chance, may_rise=not huge)
        if found.course != "not learning":
            return found
        is_known = huge or tiny or self.chance == self.chance
        is_measure = self.is_one_loss and self._first_step < _SEEN_FROM_START and not self._diverged
        rises = found.now - found.start > max(_BEYOND_NOISE * found.noise, _LEAST_FALL * found.start)
        is_excused = rises and not huge and not self._of_classes  # targets may grow, as returns do
        return found if is_known and is_measure and not is_excused else replace(found, course="no loss")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        plain = {name.lstrip("_"): value for name, value in vars(self).items() if name != "progress"}
        return {**plain, "optimizers": sorted(self._optimizers), "progress": self.progress.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.progress.load_state_dict(state["progress"])
        self._optimizers = set(state["optimizers"])
        for name in vars(self).keys() - {"progress", "_optimizers"}:
            setattr(self, name, state[name.lstrip("_")])


def judge_run(history: Iterable[Snapshot], chance: float = float("nan"), *, is_suspect: bool = False) -> Judgement:
    """Return the judgement of the Snapshots of a run; ``is_suspect`` where something else was found in it.

    Example:
        >>> str(judge_run([Snapshot(5, (), trace_step=range(6), trace_loss=[2.3, 2.4, 2.2, 2.3, 2.4, 2.3])]))
        'too few steps to tell whether it learns: 6 of 300'
    """
    learning = Learning(chance)
    for snapshot in history:
        learning.add(snapshot)
    return learning.judge(is_suspect=is_suspect)


def finding_of(judgement: Judgement, step: int) -> Finding | None:
    """Return the finding of a run that does not learn; None of any other.

    Example:
        >>> finding_of(Judgement("learns", 80, 60, 2.3, 0.4), 79) is None
        True
    """
    if judgement.course != "not learning":
        return None
    return Finding("not-learning", ("loss",), step, judgement.now, judgement.start, f"{judgement}.")


def _largest(values: Array) -> float:
    """Return the largest value; infinity where none is known, since nothing can be said of it then."""
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else float("inf")


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0
