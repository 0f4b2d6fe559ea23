"""The intake: takes Snapshots in the order of their steps, keeps some, and asks the detectors about each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from torch import distributed

from gradwatch.checks import require_whole
from gradwatch.containment import Containment, say
from gradwatch.detectors import default_detectors
from gradwatch.diagnosis import diagnose
from gradwatch.pipeline.kept_columns import KeptColumns
from gradwatch.pipeline.ledger import Ledger, OnFinding, announce, require_on_finding
from gradwatch.pipeline.schedule import Schedule
from gradwatch.probe.scalars import Pending
from gradwatch.probe.trace import Trace
from gradwatch.records import Detector, Diagnosis, Finding, Snapshot, Snapshots
from gradwatch.snapshot import Origin

_KEPT = 100  # in a checkpoint, which should stay small
# Of columns in a history: 500 Snapshots of 2,000 layers with 4,000 parameters, and 100 of 10,000 layers.
_MOST_BYTES = 256 * 2**20
_FEWEST = 20  # Snapshots, which the diagnosis needs, however large they are


class History(Snapshots):
    """A list that thins itself: when it is full, it drops every second Snapshot, and from then on keeps half as many.

    It is full with ``size`` Snapshots, or where their columns take ``most_bytes``. The latest is always there. The
    distance of the others is the same over the whole run, up to a factor of 2.

    Example:
        >>> history = History(size=4)
        >>> for step in range(10):
        ...     history.add(Snapshot(step, ()))
        >>> [snapshot.step for snapshot in history]
        [0, 4, 8, 9]
    """

    def __init__(self, size: int, most_bytes: int = _MOST_BYTES) -> None:
        super().__init__()
        self._size, self._most_bytes = size, most_bytes
        self._bytes = 0
        self._stride = 1
        self._count = 0  # of all that were added

    def add(self, snapshot: Snapshot) -> None:
        """Add the latest Snapshot."""
        if self and (self._count - 1) % self._stride:
            self._bytes -= self.pop().nbytes  # it was kept only because it was the latest
        self.append(snapshot)
        self._bytes += snapshot.nbytes
        self._count += 1
        while len(self) > self._size or (self._bytes > self._most_bytes and len(self) > _FEWEST):
            self._thin()

    def _thin(self) -> None:
        latest = self[-1]
        is_kept = (self._count - 1) % (2 * self._stride) == 0
        self._stride *= 2
        self[:] = self[::2] if is_kept or len(self) % 2 == 0 else self[:-1:2]
        if self[-1] is not latest:
            self.append(latest)
        self._bytes = sum(snapshot.nbytes for snapshot in self)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return at most 100 Snapshots, spread over the run, as plain lists and numbers."""
        kept = History(_KEPT)
        for snapshot in self:
            kept.add(snapshot)
        return [snapshot.to_dict() for snapshot in kept]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Go on from such a state."""
        self.clear()
        self._stride, self._count, self._bytes = 1, 0, 0
        for item in state:
            self.add(Snapshot.from_dict(item))


_STEPS_LATE = 2  # so that a device still has a step to work on while the host waits for an earlier one


class Arrivals:
    """A queue of measured steps, which become Snapshots in their order once their numbers have arrived.

    On a CPU they are there at once. A CUDA device is asked if they are, and never waited for. Several processes have to
    act on a Snapshot at the same step. So with them it is due at the end of the second step after its own, whatever the
    device says; by then there is hardly ever anything to wait for.
    """

    def __init__(self) -> None:
        self._pending: deque[Pending] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: Pending) -> None:
        """Queue a measured step."""
        self._pending.append(pending)

    def arrived_by(self, step: int) -> Iterator[Snapshot]:
        """Yield what has arrived by the end of a step, without waiting."""
        while self._pending and _is_due(self._pending[0], step):
            yield from _if_any(self._pending.popleft().snapshot())

    def wait(self) -> Iterator[Snapshot]:
        """Wait for all measured steps, and yield them."""
        while self._pending:
            yield from _if_any(self._pending.popleft().snapshot())


def _if_any(snapshot: Snapshot | None) -> list[Snapshot]:
    return [] if snapshot is None else [snapshot]


def _is_due(pending: Pending, step: int) -> bool:
    if not pending.transfer.is_deferred:
        return True
    if _is_single_process():
        return pending.transfer.has_arrived
    return step >= pending.step + _STEPS_LATE


def _is_single_process() -> bool:
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


class Intake:
    """Processes the measured steps in their order, each when its numbers have arrived.

    Args:
        schedule: decides which steps are measured; learns which of them looked suspicious.
        detectors, on_finding, history_size: as in :class:`~gradwatch.Watcher`.
        containment: switches off what fails; None lets every error through.
        is_speaker: this process is the one that warns.
        is_shared: several processes measure the same steps, and have to agree on which.
        columns: patterns of the columns that are kept and shown; None for all. The detectors see all of them.

    Attributes:
        history: the Snapshots that are kept.
        ledger: the findings.
        trace: losses and total norms since the last measured step, on the device.
        should_stop: a finding has opened and ``on_finding`` is ``"stop"``.
        origin: the operation that made NaN, for the next Snapshot.
        told: a fault that the trainer knows, for the next Snapshot.
        on_snapshot: is called with each Snapshot, before anything is done about a finding in it.
    """

    def __init__(
        self,
        schedule: Schedule,
        detectors: Sequence[Detector] | None,
        on_finding: OnFinding,
        history_size: int,
        *,
        containment: Containment | None = None,
        is_speaker: bool = True,
        is_shared: bool = False,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.containment = containment or Containment("raise")
        require_whole(None, least=2, history_size=history_size)
        self.history = History(int(history_size))
        self.ledger = Ledger(default_detectors() if detectors is None else detectors, containment=self.containment)
        self.containment.shared = self.ledger.parts
        self.trace = Trace()
        self.should_stop = False
        self.origin: Origin | None = None
        self.told = ""
        self.on_snapshot: Callable[[Snapshot], object] | None = None
        self.schedule = schedule
        self._kept = KeptColumns(columns)
        self._on_finding = require_on_finding(on_finding)
        self._is_speaker, self._is_shared = is_speaker, is_shared
        self._arrivals = Arrivals()
        self._opened: deque[Finding] = deque()  # not announced yet

    def add(self, pending: Pending) -> None:
        """Queue a measured step."""
        self._arrivals.add(pending)

    @property
    def is_waiting(self) -> bool:
        """Return True while there is a measured step that was not processed."""
        return bool(self._arrivals)

    def process_until(self, step: int) -> Snapshot | None:
        """Process what has arrived by the end of a step; return the latest Snapshot. Call :meth:`announce` next."""
        latest = None
        for latest in self._arrivals.arrived_by(step):
            self._process(latest)
        return latest

    def catch_up(self) -> None:
        """Wait for what has not arrived and process it; findings are announced later."""
        for snapshot in self._arrivals.wait():
            self._process(snapshot)

    def close(self, *, quietly: bool) -> None:
        """Wait for the rest and act on it; ``quietly`` raises nothing, as an error is being raised already."""
        if quietly:
            with suppress(Exception):
                self._process_rest()
                self.announce()
        else:
            with self.containment.guard("the steps since the last measured one"):
                self._process_rest()
            self.announce()
        self._opened.clear()

    def _process_rest(self) -> None:
        self.catch_up()
        self.trace.leave_device()
        self._opened.extend(self.ledger.check_losses(self._with_origin(self.trace.losses())))

    def announce(self) -> None:
        """Act on the findings that have opened.

        Raises:
            GradientError: when ``on_finding`` is ``"raise"``; what ``on_finding`` raises where it is a function.
        """
        if not self._opened:
            return
        explain = cache(self._explain)  # findings that open together share the causes
        while self._opened:
            finding = self._opened.popleft()
            self.should_stop |= announce(finding, self._on_finding, explain, is_speaker=self._is_speaker)

    def _explain(self) -> list[Diagnosis]:
        """Return the causes that are known by now; none where the rules fail, as a finding is announced anyway."""
        return self.containment.run("the diagnosis", diagnose, self.ledger.findings, tuple(self.history)) or []

    def note_origin(self, origin: Origin) -> None:
        """Take the operation that made NaN: the next step is measured, and its Snapshot tells of it."""
        self.origin = origin
        self.schedule.look_again()

    def _with_origin(self, snapshot: Snapshot) -> Snapshot:
        if self.origin is None or (snapshot.step < self.origin.step and snapshot.layers):
            return snapshot
        snapshot, self.origin = replace(snapshot, origin=self.origin), None
        return snapshot

    def _as_told(self, snapshot: Snapshot) -> Snapshot:
        told, self.told = self.told, ""
        return replace(snapshot, told=told) if told and not snapshot.told else snapshot

    def _process(self, snapshot: Snapshot) -> None:
        snapshot = self._as_told(self._with_origin(snapshot))
        kept = self._kept(snapshot)
        # History and ledger first: a report about the Snapshot shows the findings in it.
        self.history.add(kept)
        self._opened.extend(self.ledger.update(snapshot))
        self.schedule.record(snapshot.step, self.ledger.suspects(agreed=self._is_shared))
        if self.on_snapshot is not None:
            self.on_snapshot(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs; waits for what has not arrived."""
        self.catch_up()
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any], layers: Sequence[str]) -> None:
        """Go on from such a state.

        Args:
            state: from :meth:`state_dict`, maybe of an older version with fewer entries.
            layers: those that are watched now. With other layers, the history and findings of the state do not fit,
                and only its schedule and trace are loaded.
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
        return {"ledger": self.ledger, "history": self.history, "schedule": self.schedule, "traces": self.trace}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy: it has what was recorded, and calls no ``on_snapshot``."""
        self.catch_up()
        return {**self.__dict__, "on_snapshot": None}
