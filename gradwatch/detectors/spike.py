"""A jump of the loss or of the total gradient norm."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from gradwatch.checks import require_positive, require_whole
from gradwatch.records import Array, Finding, Snapshot


@dataclass
class RecentValues:
    """The first values of a quantity, which set its level, and the recent ones; finite values only."""

    recent: deque[float]
    first: list[float] = field(default_factory=list)
    highest: float = 0.0

    def append(self, value: float, start: int) -> None:
        """Take in a value; the first ``start`` ones set the level."""
        if np.isfinite(value):
            self.highest = max(self.highest, value)
            self.recent.append(value)
            if len(self.first) < start:
                self.first.append(value)


@dataclass
class Jump:
    """A value of a restless quantity beyond its limit, which may be its usual tail.

    Attributes:
        step, value, limit, mean: of the jump.
        stayed: values after it that were still high.
    """

    step: int
    value: float
    limit: float
    mean: float
    stayed: int = 0


# A loss of batches of 64 varies by 0.05 to 0.2 from step to step, in logarithms; one of batches of one to four by 0.5
# and more (tests/benchmarks/harm).
_RESTLESS = 0.3
_STAYS_UP = 2.0  # times the mean before the jump
# Times the median, of the recent values and of the first ones: taken for more than a tail by nature. It is a judgement,
# from no table; a missing target that is read as -999 makes 5,000.
_BY_NATURE = 100.0
_RUNS_AWAY = 10.0  # times the first losses: a loss below zero that falls without end, and its gradient with it


@dataclass
class Spike:
    """The loss, or the total gradient norm, is many times the mean of its own delayed history, and beyond its spread.

    The delay keeps a spike that builds up out of its own baseline. A converged run is quiet: a jump that stays under
    ``floor`` times the level of the run's first values is none, nor is a gradient that grows a little while the loss
    does not: a recurrent network that learns, or one that leaves a plateau. A quantity that was negative lately has no
    zero to be a multiple of; it is passed over, and as such a loss measures no progress, so is a gradient that does not
    jump far.

    Some losses have a heavy tail by nature: batches of one sample, rare classes, an actor and its critic. A jump is
    held against the spread of the run's own values, in logarithms. Where losses vary by over a third from step to step,
    only a loss that stays up after the jump is a spike, or one of a hundred times the usual: where an agent falls, its
    critic's loss may be eight times as high as any before, for one step.

    Args:
        factor: multiple of the mean that is a spike.
        window: how many values the mean is taken over.
        delay: how many of the latest values are left out of it.
        start: values before which nothing is judged, and that set the run's first level.
        floor: share of that level under which no jump counts.
        loud: multiple of the recent mean loss from which on a jump of the gradient counts.
        sure: multiple of its limit from which on it counts whatever the loss is.
        spread: standard deviations of the steps of the logarithms; a jump that stays within so many is none.
        after: values after a jump of a restless loss that must all stay up, for it to be a spike.

    Raises:
        ValueError: when an argument is not positive.

    Example:
        >>> spike = Spike(delay=5, start=10)
        >>> quiet = Snapshot(99, (), trace_step=range(100), trace_loss=[1.0] * 100, trace_total_norm=[np.nan] * 100)
        >>> list(spike(quiet))
        []
        >>> [f.step for f in spike(Snapshot(100, (), trace_step=[100], trace_loss=[9.0], trace_total_norm=[np.nan]))]
        [100]

    References:
        MosaicML's llm-foundry, LossSpike and gradient-norm rules: 7.5 times the mean of the steps T-1000 to T-500; the
        window and the delay here are a tenth and a twentieth of that, for runs of thousands of steps.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    of_losses: ClassVar[bool] = True
    factor: float = 7.5
    window: int = 100
    delay: int = 25
    start: int = 20
    floor: float = 1.0
    loud: float = 1.5
    sure: float = 10.0
    spread: float = 6.0
    after: int = 8
    patience: int = field(default=1, init=False)
    _waiting: list[Jump] = field(default_factory=list, init=False, repr=False)
    _histories: dict[str, RecentValues] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_positive(self, factor=self.factor, floor=self.floor, loud=self.loud, sure=self.sure, spread=self.spread)
        require_whole(self, window=self.window, delay=self.delay, start=self.start, after=self.after)
        if self.start > self.window:
            raise ValueError(f"Spike: start is {self.start!r}; expected at most the window, {self.window}")

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield the largest spike of each quantity since the last Snapshot."""
        found = self._look("loss", snapshot.trace_step, snapshot.trace_loss)
        yield from self._finding("loss", found)
        steps, totals = snapshot.trace_step, snapshot.trace_total_norm
        if np.isnan(totals).all():  # not kept between measured steps: the measured one alone
            steps, totals = np.array([snapshot.step]), np.array([snapshot.total_norm])
        calm = self._is_harmless(snapshot)
        found = self._look("grad_norm_total", steps, totals)
        yield from self._finding(
            "grad_norm_total", [jump for jump in found if not calm or jump.value > self.sure * jump.limit]
        )

    def _is_harmless(self, snapshot: Snapshot) -> bool:
        """Return True if the loss is near its recent mean: at the end of a plateau the gradient grows without harm.

        A loss that was negative lately (a reward, a likelihood) measures no progress, and can't be asked. One that runs
        away below zero takes the gradient with it.
        """
        history = self._histories["loss"]
        past = list(history.recent)[-self.delay :]
        if past and min(past) < 0:
            return abs(sum(past)) / len(past) < _RUNS_AWAY * float(np.abs(history.first).mean())
        return len(past) == self.delay and snapshot.loss < self.loud * sum(past) / self.delay

    def state_dict(self) -> dict[str, Any]:
        """The histories, for a checkpoint."""
        known: dict[str, Any] = {
            name: {"recent": list(h.recent), "first": list(h.first), "highest": h.highest}
            for name, h in self._histories.items()
        }
        return {**known, "waiting": [vars(jump) for jump in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the histories of an earlier run."""
        length = self.window + self.delay
        self._waiting = [Jump(**jump) for jump in state["waiting"]]
        self._histories = {
            name: RecentValues(deque(saved["recent"], maxlen=length), list(saved["first"]), saved["highest"])
            for name, saved in state.items()
            if name != "waiting"
        }

    def _look(self, name: str, steps: object, values: object) -> list[Jump]:
        """Take in the values of a quantity; return those that are spikes."""
        history = self._histories.setdefault(name, RecentValues(deque(maxlen=self.window + self.delay)))
        found: list[Jump] = []
        for step, value in zip(np.asarray(steps).tolist(), np.asarray(values).tolist(), strict=True):
            if name == "loss":
                found += self._that_stayed_up(value)
            limits = self._limits(history, value)
            if limits is not None and np.isfinite(value) and value > limits[0]:
                jump = Jump(step, value, limits[0], limits[1])
                waits = name == "loss" and limits[2] > _RESTLESS and value < limits[3]
                (self._waiting if waits else found).append(jump)
            history.append(value, self.start)
        return found

    def _that_stayed_up(self, value: float) -> list[Jump]:
        """Compare a loss with the jumps before it; return those after which it has stayed up for long enough."""
        self._waiting = [jump for jump in self._waiting if value > _STAYS_UP * jump.mean]
        for jump in self._waiting:
            jump.stayed += 1
        done = [jump for jump in self._waiting if jump.stayed >= self.after]
        self._waiting = [jump for jump in self._waiting if jump.stayed < self.after]
        return done

    def _finding(self, name: str, found: Sequence[Jump]) -> Iterator[Finding]:
        if not found:
            return
        worst = max(found, key=lambda jump: jump.value / jump.limit)
        stays = f" and stays up for {worst.stayed} steps" if worst.stayed else ""
        message = (
            f"spike: {name} is {worst.value:.3g} at step {worst.step}, {worst.value / worst.mean:.1f} times its recent "
            f"mean{stays} (healthy: below {worst.limit:.3g})."
        )
        yield Finding("spike", (name,), worst.step, worst.value, worst.limit, message)

    def _limits(self, history: RecentValues, value: float) -> tuple[float, float, float, float] | None:
        """Return the limit of the next value, mean and spread of the past, and a sure limit; None for no jump."""
        count = len(history.recent) - self.delay
        if count < self.start:
            return None
        past = np.array(list(islice(history.recent, count)))
        mean = float(past.mean())
        if mean <= 0 or past.min() < 0 or not value > self.factor * mean:  # as at nearly every step
            return None
        logs = np.log(past[past > 0])
        latest = np.array(history.recent)  # with those of the delay: losses may have become restless lately
        spread = _spread(np.log(latest[latest > 0]))
        level = sum(history.first) / len(history.first)
        tail = float(np.exp(min(np.median(logs) + self.spread * spread, _LARGEST)))
        sure = _BY_NATURE * float(max(np.exp(np.median(logs)), np.median(history.first)))
        tail = min(tail, self.factor * history.highest, sure)
        return max(self.factor * mean, self.floor * level, tail), mean, spread, sure


_LARGEST = 700.0  # exp of more is inf


def _spread(logs: Array) -> float:
    """Return the standard deviation of logarithms around their course, from their steps: a slow fall adds nothing.

    The median of the steps is robust; their 95 % quantile sees a tail. Both are scaled to agree for normal values.

    Example:
        >>> round(_spread(np.random.default_rng(0).normal(size=1000)), 1), _spread(np.arange(50.0) * 0)
        (1.0, 0.0)
    """
    steps = np.abs(np.diff(logs))
    if not len(steps):
        return 0.0
    return float(max(np.median(steps) / 0.6745, np.quantile(steps, 0.95) / 1.96)) / 2**0.5
