"""Snapshots in the order of their steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import distributed

from gradwatch.checks import require_whole
from gradwatch.containment import Containment, say
from gradwatch.detectors import default_detectors
from gradwatch.diagnosis import diagnose
from gradwatch.pipeline.history import History
from gradwatch.pipeline.ledger import Ledger, OnFinding, announce, require_on_finding
from gradwatch.pipeline.schedule import Schedule
from gradwatch.probe.scalars import Pending
from gradwatch.probe.trace import Traces
from gradwatch.records import Detector, Diagnosis, Finding, Snapshot

_STEPS_LATE = 2  # a device that is two steps behind its host still has a step to work on while the host waits


class Arrivals:
    """Hands out Snapshots in the order of their steps, once their numbers are there.

    On a CPU that is at once. A CUDA device is asked, and never waited for. Where several processes train together, all
    have to take a Snapshot in at the same step, or they would act on it at different ones: whatever a device says, it
    is the end of the second step after, by which it has hardly ever to be waited for.

    Example:
        >>> import torch
        >>> from gradwatch.probe.scalars import Transfer
        >>> arrivals = Arrivals()
        >>> arrivals.add(Pending(7, Transfer(1, [(torch.ones(1), [0])]), lambda values: Snapshot(7, ())))
        >>> [snapshot.step for snapshot in arrivals.take(7)]
        [7]
    """

    def __init__(self) -> None:
        self._pending: deque[Pending] = deque()

    def add(self, pending: Pending) -> None:
        """Queue a measured step."""
        self._pending.append(pending)

    def take(self, step: int) -> Iterator[Snapshot]:
        """What has arrived by the end of a step, without waiting."""
        while self._pending and _is_due(self._pending[0], step):
            yield from _there_is(self._pending.popleft().snapshot())

    def wait(self) -> Iterator[Snapshot]:
        """All there is, waited for."""
        while self._pending:
            yield from _there_is(self._pending.popleft().snapshot())


def _there_is(snapshot: Snapshot | None) -> list[Snapshot]:
    return [] if snapshot is None else [snapshot]


def _is_due(pending: Pending, step: int) -> bool:
    if not pending.transfer.is_deferred:
        return True
    if _is_alone():
        return pending.transfer.has_arrived
    return step >= pending.step + _STEPS_LATE


def _is_alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


class Intake:
    """Takes in the measured steps in their order, each when its numbers have come.

    Args:
        schedule: which steps are measured; it is told what they looked like.
        detectors: look at each Snapshot; None takes all with their defaults.
        on_finding: what is done when a finding opens.
        history_size: how many Snapshots are kept.
        containment: switches off what fails; None lets every error through.
        aloud: whether this process is the one that warns.
        shared: several processes measure the same steps, so that they have to agree on which.

    Attributes:
        history: the Snapshots that are kept.
        ledger: the findings.
        traces: losses and total norms since the last measured step, on the device.
        should_stop: a finding has opened and ``on_finding`` is ``"stop"``.
        on_snapshot: is called with each Snapshot, and before anything is done about a finding in it.

    Example:
        >>> from gradwatch.probe.scalars import Transfer
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
        containment: Containment | None = None,
        aloud: bool = True,
        shared: bool = False,
    ) -> None:
        self.containment = containment or Containment("raise")
        require_whole(None, least=2, history_size=history_size)
        self.history = History(int(history_size))
        self.ledger = Ledger(default_detectors() if detectors is None else detectors, containment=self.containment)
        self.containment.shared = self.ledger.parts
        self.traces = Traces()
        self.should_stop = False
        self.on_snapshot: Callable[[Snapshot], object] | None = None
        self.schedule = schedule
        self._on_finding, self._aloud, self._shared = require_on_finding(on_finding), aloud, shared
        self._arrivals = Arrivals()
        self._opened: deque[Finding] = deque()  # not announced yet

    def add(self, pending: Pending) -> None:
        """Queue a measured step."""
        self._arrivals.add(pending)

    def take(self, step: int) -> Snapshot | None:
        """Take in what has arrived by the end of a step; returns the latest of it. :meth:`announce` comes next."""
        latest = None
        for latest in self._arrivals.take(step):
            self._look_at(latest)
        return latest

    def catch_up(self) -> None:
        """Wait for what has not arrived and take it in; what opens is announced later."""
        for snapshot in self._arrivals.wait():
            self._look_at(snapshot)

    def close(self, *, quietly: bool) -> None:
        """Wait for the rest and act on it; ``quietly`` raises nothing: an error is under way, maybe the device's."""
        if quietly:
            with suppress(Exception):
                self._take_the_rest()
                self.announce()
        else:
            with self.containment.guard("the steps since the last measured one"):
                self._take_the_rest()
            self.announce()
        self._opened.clear()

    def _take_the_rest(self) -> None:
        self.catch_up()
        self.traces.leave_device()
        self._opened.extend(self.ledger.check_losses(self.traces.rest()))

    def announce(self) -> None:
        """Act on the findings that have opened.

        Raises:
            GradientError: when ``on_finding`` is ``"raise"``; what ``on_finding`` raises where it is a function.
        """
        while self._opened:
            self.should_stop |= announce(
                self._opened.popleft(), self._on_finding, self._explain, is_speaker=self._aloud
            )

    def _explain(self) -> list[Diagnosis]:
        """Return the causes that are known by now; none where the rules fail, as a finding is told in any case."""
        return self.containment.run("the diagnosis", diagnose, self.ledger.findings, tuple(self.history)) or []

    def _look_at(self, snapshot: Snapshot) -> None:
        self.history.add(snapshot)
        self._opened.extend(self.ledger.update(snapshot))
        suspicious = self.ledger.wants_another_look(agreed=self._shared)
        self.schedule.took(snapshot.step, suspicious=suspicious)
        if self.on_snapshot is not None:
            self.on_snapshot(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, once all has arrived."""
        self.catch_up()
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any], layers: Sequence[str]) -> None:
        """Go on from there.

        Args:
            state: what :meth:`state_dict` gave; what an older version did not keep is left as it is.
            layers: those that are watched now. The memory of a run that watched others does not fit: its Snapshots,
                findings and detectors' memories would be mixed with those of other layers, and are left.
        """
        known = state.get("layers", layers)
        fits = set(known) == set(layers)
        if not fits and (state["history"] or state["ledger"]["findings"]):
            say(
                f"the checkpoint's history is of {len(known)} layers, and {len(layers)} are watched now, which are not "
                "the same (another model, or other include or exclude patterns): history and findings start anew."
            )
        for name, part in self._parts().items():
            if name in state and (fits or name in ("schedule", "traces")):
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"ledger": self.ledger, "history": self.history, "schedule": self.schedule, "traces": self.traces}

    def __getstate__(self) -> dict[str, Any]:
        """A copy has what was recorded and reports to nobody."""
        self.catch_up()
        return {**self.__dict__, "on_snapshot": None}
