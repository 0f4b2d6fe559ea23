"""A jump of the loss or of the total gradient norm."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from gradwatch.checks import require_positive, require_whole
from gradwatch.records import Finding, Snapshot


@dataclass
class RecentValues:
    """The first values of a quantity, which set its level, and the recent ones; finite values only."""

    recent: deque[float]
    first: list[float] = field(default_factory=list)

    def append(self, value: float, start: int) -> None:
        """Take in a value; the first ``start`` ones set the level."""
        if np.isfinite(value):
            self.recent.append(value)
            if len(self.first) < start:
                self.first.append(value)


@dataclass
class Spike:
    """The loss, or the total gradient norm, is many times the mean of its own delayed history.

    The delay keeps a spike that builds up out of its own baseline. A converged run is quiet: a jump that stays under
    ``floor`` times the level of the run's first values is none, nor is a gradient that grows a little while the loss
    does not: a recurrent network that learns, or one that leaves a plateau. A quantity that was negative lately has no
    zero to be a multiple of; it is passed over.

    Args:
        factor: multiple of the mean that is a spike.
        window: how many values the mean is taken over.
        delay: how many of the latest values are left out of it.
        start: values before which nothing is judged, and that set the run's first level.
        floor: share of that level under which no jump counts.
        loud: multiple of the recent mean loss from which on a jump of the gradient counts.
        sure: multiple of its limit from which on it counts whatever the loss is.

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

    of_losses: ClassVar[bool] = True
    factor: float = 7.5
    window: int = 100
    delay: int = 25
    start: int = 20
    floor: float = 1.0
    loud: float = 1.5
    sure: float = 10.0
    patience: int = field(default=1, init=False)
    _histories: dict[str, RecentValues] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_positive(self, factor=self.factor, floor=self.floor, loud=self.loud, sure=self.sure)
        require_whole(self, window=self.window, delay=self.delay, start=self.start)
        if self.start > self.window:
            raise ValueError(f"Spike: start is {self.start!r}; expected at most the window, {self.window}")

    def __call__(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield the largest spike of each quantity since the last Snapshot."""
        yield from self._look("loss", snapshot.trace_step, snapshot.trace_loss)
        steps, totals = snapshot.trace_step, snapshot.trace_total_norm
        if np.isnan(totals).all():  # not kept between measured steps: the measured one alone
            steps, totals = np.array([snapshot.step]), np.array([snapshot.total_norm])
        calm = self._is_harmless(snapshot)
        found = self._look("grad_norm_total", steps, totals)
        yield from (finding for finding in found if not calm or finding.value > self.sure * finding.threshold)

    def _is_harmless(self, snapshot: Snapshot) -> bool:
        """Return True if the loss is near its recent mean: at the end of a plateau the gradient grows without harm."""
        past = list(self._histories["loss"].recent)[-self.delay :]
        return len(past) == self.delay and snapshot.loss < self.loud * sum(past) / self.delay

    def state_dict(self) -> dict[str, Any]:
        """The histories, for a checkpoint."""
        return {name: {"recent": list(h.recent), "first": list(h.first)} for name, h in self._histories.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the histories of an earlier run."""
        length = self.window + self.delay
        self._histories = {
            name: RecentValues(deque(saved["recent"], maxlen=length), list(saved["first"]))
            for name, saved in state.items()
        }

    def _look(self, name: str, steps: object, values: object) -> Iterator[Finding]:
        history = self._histories.setdefault(name, RecentValues(deque(maxlen=self.window + self.delay)))
        worst: tuple[float, float, int] | None = None
        for step, value in zip(np.asarray(steps).tolist(), np.asarray(values).tolist(), strict=True):
            limit = self._limit(history)
            if limit is not None and np.isfinite(value) and value > limit:
                worst = max(worst or (0.0, 0.0, 0), (value / limit, limit, step))
            history.append(value, self.start)
        if worst is not None:
            ratio, limit, step = worst
            message = (
                f"spike: {name} is {ratio * limit:.3g} at step {step}, {ratio * self.factor:.1f} times its recent mean "
                f"(healthy: below {limit:.3g})."
            )
            yield Finding("spike", (name,), step, ratio * limit, limit, message)

    def _limit(self, history: RecentValues) -> float | None:
        count = len(history.recent) - self.delay
        if count < self.start:
            return None
        past = list(islice(history.recent, count))
        mean = sum(past) / count
        if mean <= 0 or min(past) < 0:
            return None
        level = sum(history.first) / len(history.first)
        return max(self.factor * mean, self.floor * level)
