"""What is done when a finding opens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradwatch.causes import advice
from gradwatch.containment import Containment, stacklevel_of_user
from gradwatch.records import Detector, Diagnosis, Finding, GradientError, GradientWarning, Snapshot

OnFinding = Literal["warn", "stop", "raise"] | Callable[[Finding], object]


def require_on_finding(value: OnFinding) -> OnFinding:
    """The value, or a ValueError if it is not known.

    Example:
        >>> require_on_finding("explode")
        Traceback (most recent call last):
            ...
        ValueError: on_finding is 'explode'; expected 'warn', 'stop', 'raise' or a function of the Finding
    """
    if not callable(value) and value not in ("warn", "stop", "raise"):
        raise ValueError(f"on_finding is {value!r}; expected 'warn', 'stop', 'raise' or a function of the Finding")
    return value


def announce(
    finding: Finding, on_finding: OnFinding, explain: Callable[[], Iterable[Diagnosis]] = tuple, *, aloud: bool = True
) -> bool:
    """Warn, raise or call; return True if the training should stop.

    Args:
        finding: the one that opened.
        on_finding: what is done about it.
        explain: returns the causes that are known by now, the likeliest first.
        aloud: this process is the one that warns.

    Raises:
        GradientError: when ``on_finding`` is ``"raise"``.

    Example:
        >>> announce(Finding("vanishing", ("a",), 0, 1e-7, 1e-3, "it vanishes"), lambda finding: print(finding.kind))
        vanishing
        False
    """
    if callable(on_finding):
        on_finding(finding)
        return False
    if on_finding == "raise":
        raise GradientError(finding, _cause_in_words(finding, explain()))
    if aloud:
        text = f"{finding.message} {_cause_in_words(finding, explain())}"
        warnings.warn(text, GradientWarning, stacklevel=stacklevel_of_user())
    return on_finding == "stop"


def _cause_in_words(finding: Finding, diagnoses: Iterable[Diagnosis]) -> str:
    """Return the likeliest cause of a finding as far as it is known, and the first thing to do."""
    for diagnosis in diagnoses:
        if finding in diagnosis.findings and diagnosis.cause != "not known":
            return f"Likely cause so far: {diagnosis.cause}. First thing to try: {diagnosis.remedies[0]}."
    return f"The cause is not known yet. To begin with, {advice('not known', finding.kind)[0]}."


@dataclass
class Track:
    """One trouble over time: the finding as it stands, and for how many measured steps it was seen, or not."""

    detector: int
    finding: Finding
    place: int | None = None  # in the list of findings; None until it has lasted for the detector's patience
    seen: int = 0
    clean: int = 0


class Ledger:
    """Runs detectors on Snapshots and keeps the book of findings.

    A trouble is the same one while its kind is the same and its layers overlap. It opens when it was seen for as many
    measured steps in a row as its detector's ``patience`` says (1 where it has none), dated to the first of them.

    Args:
        detectors: objects or plain functions: ``detector(snapshot)`` gives a Finding, several, or None.
        close_after: measured steps without it until a finding closes.
        containment: switches off a detector that raises, or returns something else; None lets its error through.

    Raises:
        TypeError: when a detector can't be called.

    Example:
        >>> def loud(snapshot):
        ...     if snapshot.total_norm > 10:
        ...         return Finding("loud", ("all",), snapshot.step, snapshot.total_norm, 10, "too loud")
        >>> ledger = Ledger([loud], close_after=1)
        >>> for step, norm in enumerate([1.0, 20.0, 30.0, 2.0]):
        ...     opened = ledger.update(Snapshot(step, (), total_norm=norm))
        >>> [(finding.step, finding.closed_step) for finding in ledger.findings]
        [(1, 3)]
    """

    def __init__(
        self, detectors: Sequence[Detector], close_after: int = 3, containment: Containment | None = None
    ) -> None:
        for detector in detectors:
            if not callable(detector):
                raise TypeError(
                    f"detectors: {detector!r} is a {type(detector).__name__}; expected something that is called with a "
                    f"Snapshot and returns findings, such as gradwatch.Vanishing() or a function"
                )
        self.detectors = list(detectors)
        self.parts = tuple(f"detector {i} {_name_of(detector)}" for i, detector in enumerate(self.detectors))
        self._containment = containment or Containment("raise")
        self.findings: list[Finding] = []
        self._close_after = close_after
        self._tracks: list[Track] = []
        self._just_opened: list[Track] = []

    def wants_another_look(self, *, agreed: bool) -> bool:
        """Return True if something was seen that is no finding yet, or has just become one.

        Args:
            agreed: ask only the detectors of gradwatch, which find the same in every process. One of the user's may
                raise, or decide, in one process alone, and then the others would wait for its numbers.
        """
        tracks = [*(track for track in self._tracks if track.place is None), *self._just_opened]
        return any(not agreed or _is_ours(self.detectors[track.detector]) for track in tracks)

    def glimpse(self, snapshot: Snapshot) -> list[Finding]:
        """Look at the losses of steps that were not measured: findings open, none closes, nothing is remembered.

        Detectors are asked that need no more than losses, and say so by ``of_losses``.
        """
        asked: dict[int, Any] = {}
        for i, detector in enumerate(self.detectors):
            if getattr(detector, "of_losses", False):
                asked[i] = self._containment.run(self.parts[i], deepcopy, detector)
        return list(self._open(self._see(snapshot, asked)))

    def update(self, snapshot: Snapshot) -> list[Finding]:
        """Look at the next measured step; returns the findings that it opens."""
        seen = self._see(snapshot, dict(enumerate(self.detectors)))
        before = {id(track) for track in seen if track.place is not None}
        opened = list(self._open(seen))
        self._just_opened = [track for track in seen if track.place is not None and id(track) not in before]
        self._age([track for track in self._tracks if not any(track is other for other in seen)], snapshot.step)
        return opened

    def _see(self, snapshot: Snapshot, asked: Mapping[int, Detector]) -> list[Track]:
        """What the detectors, by their places, find in a Snapshot."""
        seen: list[Track] = []
        for number, detector in asked.items():
            found = self._containment.run(self.parts[number], _ask, detector, snapshot)
            for finding in found or ():
                seen.append(self._track(number, finding, snapshot, seen))
        return seen

    def _track(self, number: int, finding: Finding, snapshot: Snapshot, taken: Sequence[Track]) -> Track:
        for track in self._tracks:
            if track.detector == number and _is_same(track.finding, finding):
                together = _in_order((*track.finding.layers, *finding.layers), snapshot)
                if any(track is other for other in taken):  # two sides of one trouble, in one step
                    track.finding = replace(track.finding, layers=together)
                    return track
                layers = finding.layers if track.place is None else together
                track.finding = replace(finding, step=track.finding.step, layers=layers)
                break
        else:
            track = Track(number, finding)
            self._tracks.append(track)
        track.seen, track.clean = track.seen + 1, 0
        if track.place is not None:
            self.findings[track.place] = track.finding
        return track

    def _open(self, seen: Sequence[Track]) -> Iterator[Finding]:
        for track in seen:
            if track.place is None and track.seen >= getattr(self.detectors[track.detector], "patience", 1):
                track.place = len(self.findings)
                self.findings.append(track.finding)
                yield track.finding

    def _age(self, unseen: Sequence[Track], step: int) -> None:
        for track in unseen:
            track.clean += 1
            if track.place is None:
                self._tracks.remove(track)
            elif track.clean >= self._close_after:
                self.findings[track.place] = replace(track.finding, closed_step=step)
                self._tracks.remove(track)

    def state_dict(self) -> dict[str, Any]:
        """All findings, the troubles that are watched, and what detectors with a memory remember, for a checkpoint."""
        memories = {i: self._memory_of(i) for i, d in enumerate(self.detectors) if hasattr(d, "state_dict")}
        tracks = [{**vars(track), "finding": track.finding.to_dict()} for track in self._tracks]
        return {"findings": [finding.to_dict() for finding in self.findings], "tracks": tracks, "memories": memories}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where an earlier run stopped: what was open is open, and closes when it is gone."""
        self.findings = [Finding.from_dict(item) for item in state["findings"]]
        tracks = [Track(**{**item, "finding": Finding.from_dict(item["finding"])}) for item in state["tracks"]]
        self._tracks = [track for track in tracks if track.detector < len(self.detectors)]
        for number, memory in state["memories"].items():
            if number < len(self.detectors) and hasattr(self.detectors[number], "load_state_dict"):
                self._containment.run(self.parts[number], self.detectors[number].load_state_dict, memory)

    def _memory_of(self, number: int) -> Any:
        detector: Any = self.detectors[number]
        return self._containment.run(self.parts[number], detector.state_dict)


def _is_same(old: Finding, new: Finding) -> bool:
    return old.kind == new.kind and (old.layers == new.layers or bool(set(old.layers) & set(new.layers)))


def _in_order(names: Sequence[str], snapshot: Snapshot) -> tuple[str, ...]:
    place = {name: i for i, name in enumerate((*snapshot.layers, *snapshot.params))}
    return tuple(sorted(dict.fromkeys(names), key=lambda name: place.get(name, -1)))


def _name_of(detector: Detector) -> str:
    return str(getattr(detector, "__name__", type(detector).__name__))


def _is_ours(detector: Detector) -> bool:
    return type(detector).__module__.startswith("gradwatch.")


def _ask(detector: Detector, snapshot: Snapshot) -> list[Finding]:
    return _listed(detector(snapshot))


def _listed(result: object) -> list[Finding]:
    if result is None:
        return []
    several = isinstance(result, Iterable) and not isinstance(result, (str, Mapping))
    findings: list[Finding] = []
    for finding in result if several else [result]:  # type: ignore[attr-defined]
        if not isinstance(finding, Finding):
            raise TypeError(f"a detector returned {finding!r}; expected a gradwatch.Finding, several of them, or None")
        findings.append(finding)
    return findings
