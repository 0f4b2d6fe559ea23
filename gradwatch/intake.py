"""Snapshots as they arrive: kept, looked at by the detectors, and acted on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from gradwatch.detectors import Ledger, default_detectors
from gradwatch.detectors.announce import OnFinding, announce, require_on_finding
from gradwatch.probe.history import History
from gradwatch.probe.pending import Arrivals, Pending
from gradwatch.probe.schedule import Schedule, require_count
from gradwatch.probe.trace import Traces
from gradwatch.records import Detector, Finding, Snapshot


class Intake:
    """Takes in the measured steps in their order, each when its numbers have come.

    Args:
        schedule: which steps are measured; it is told what they looked like.
        detectors: look at each Snapshot; None takes all with their defaults.
        on_finding: what is done when a finding opens.
        history_size: how many Snapshots are kept.
        aloud: whether this process is the one that warns.

    Attributes:
        history: the Snapshots that are kept.
        ledger: the findings.
        traces: losses and total norms since the last measured step, on the device.
        should_stop: a finding has opened and ``on_finding`` is ``"stop"``.
        on_snapshot: is called with each Snapshot, and before anything is done about a finding in it.

    Example:
        >>> from gradwatch.probe.transfer import Transfer
        >>> intake = Intake(Schedule(1, 0), [], "warn", history_size=9)
        >>> intake.add(Pending(0, Transfer(0, []), lambda values: Snapshot(0, ())))
        >>> intake.take(step=0).step
        0
    """

    def __init__(
        self,
        schedule: Schedule,
        detectors: Sequence[Detector] | None,
        on_finding: OnFinding,
        history_size: int,
        *,
        aloud: bool = True,
    ) -> None:
        self.history = History(require_count("history_size", history_size, least=2))
        self.ledger = Ledger(default_detectors() if detectors is None else detectors)
        self.traces = Traces()
        self.should_stop = False
        self.on_snapshot: Callable[[Snapshot], object] | None = None
        self.schedule = schedule
        self._on_finding, self._aloud = require_on_finding(on_finding), aloud
        self._arrivals = Arrivals()
        self._opened: deque[Finding] = deque()  # not announced yet

    def add(self, pending: Pending) -> None:
        """Queue a measured step."""
        self._arrivals.add(pending)

    def take(self, step: int) -> Snapshot | None:
        """Take in what has arrived by the end of a step; returns the latest of it.

        Raises:
            GradientError: when a finding has opened and ``on_finding`` is ``"raise"``.
        """
        latest = None
        for latest in self._arrivals.take(step):
            self._look_at(latest)
        self._announce()
        return latest

    def catch_up(self) -> None:
        """Wait for what has not arrived and take it in; what opens is announced later."""
        for snapshot in self._arrivals.wait():
            self._look_at(snapshot)

    def close(self, *, quietly: bool) -> None:
        """Wait for the rest and act on it; ``quietly`` raises nothing: an error is under way, maybe the device's."""
        with suppress(Exception) if quietly else nullcontext():
            self.catch_up()
            self.traces.leave_device()
            self._opened.extend(self.ledger.glimpse(self.traces.rest()))
            self._announce()
        self._opened.clear()

    def _announce(self) -> None:
        while self._opened:
            self.should_stop |= announce(self._opened.popleft(), self._on_finding, aloud=self._aloud)

    def _look_at(self, snapshot: Snapshot) -> None:
        self.history.add(snapshot)
        opened = self.ledger.update(snapshot)
        self._opened.extend(opened)
        self.schedule.took(snapshot.step, suspicious=bool(opened) or self.ledger.is_suspicious)
        if self.on_snapshot is not None:
            self.on_snapshot(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, once all has arrived."""
        self.catch_up()
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; what an older version did not keep is left as it is."""
        for name, part in self._parts().items():
            if name in state:
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"ledger": self.ledger, "history": self.history, "schedule": self.schedule, "traces": self.traces}

    def __getstate__(self) -> dict[str, Any]:
        """A copy has what was recorded and reports to nobody."""
        self.catch_up()
        return {**self.__dict__, "on_snapshot": None}
