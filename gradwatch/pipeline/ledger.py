"""The ledger of findings: detectors are asked, and findings open, last, close and are announced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradwatch.causes import advice
from gradwatch.containment import Containment, stacklevel_of_user
from gradwatch.pipeline.harm import Harm
from gradwatch.records import Detector, Diagnosis, Finding, Findings, GradientError, GradientWarning, Snapshot

OnFinding = Literal["warn", "stop", "raise"] | Callable[[Finding], object]


def require_on_finding(value: OnFinding) -> OnFinding:
    """Return the value, or raise a ValueError if it is unknown."""
    if not callable(value) and value not in ("warn", "stop", "raise"):
        raise ValueError(f"on_finding is {value!r}; expected 'warn', 'stop', 'raise' or a function of the Finding")
    return value


def announce(
    finding: Finding,
    on_finding: OnFinding,
    explain: Callable[[], Iterable[Diagnosis]] = tuple,
    *,
    is_speaker: bool = True,
) -> bool:
    """Warn, raise or call; return True if the training should stop.

    Args:
        finding: has just opened.
        on_finding: the user's choice.
        explain: returns the causes that are known by now, the likeliest first.
        is_speaker: True in the one process that warns for all.

    Raises:
        GradientError: when ``on_finding`` is ``"raise"``.
    """
    if callable(on_finding):
        on_finding(finding)
        return False
    if on_finding == "raise":
        raise GradientError(finding, _cause_in_words(finding, explain()))
    if is_speaker:
        text = f"{finding.message} {_cause_in_words(finding, explain())}"
        warnings.warn(text, GradientWarning, stacklevel=stacklevel_of_user())
    return on_finding == "stop"


def _cause_in_words(finding: Finding, diagnoses: Iterable[Diagnosis]) -> str:
    """Return the likeliest cause of a finding as far as it is known, and the first thing to do."""
    for diagnosis in diagnoses:
        # A late Snapshot may have brought the finding up to date since it opened; its first step stays.
        explains = any(
            found.kind == finding.kind and found.step == finding.step and set(found.layers) & set(finding.layers)
            for found in diagnosis.findings
        )
        if explains and diagnosis.cause != "not known":
            return f"Likely cause so far: {diagnosis.cause}. First thing to try: {diagnosis.remedies[0]}."
    return f"The cause is not known yet. To begin with, {advice('not known', finding.kind)[0]}."


@dataclass
class Trouble:
    """Something that a detector keeps finding.

    Attributes:
        detector: place of the detector.
        finding: the latest until it has lasted for the detector's patience; from then on that one, with what was seen
            since. It is dated to the first step.
        place: place in the list of findings; None until it has lasted for the detector's patience, and while it is
            kept back as it does no harm.
        seen, clean: measured steps with it, and since it was last seen.
        layers: all that it has been about.
        is_harmless: the run did well with it when it was last seen. What is seen next counts as its beginning.
    """

    detector: int
    finding: Finding
    place: int | None = None
    seen: int = 0
    clean: int = 0
    layers: tuple[str, ...] = ()
    is_harmless: bool = False


class Ledger:
    """Asks detectors about each Snapshot, and keeps their findings.

    Two findings are the same trouble if their kind is the same and their layers overlap. A trouble becomes a finding
    after as many measured steps in a row as its detector's ``patience`` (1 by default), and is dated to the first. It
    keeps the words of that moment; the latest and the worst value are added. A detector whose findings need harm
    (``harm_after``) is heard when :class:`~gradwatch.pipeline.harm.Harm` sees some, or at the end of the run.

    Args:
        detectors: objects or plain functions: ``detector(snapshot)`` gives a Finding, several, or None.
        close_after: measured steps without it until a finding closes.
        containment: switches off a detector that raises, or returns something else; None lets its error through.

    Raises:
        TypeError: when a detector can't be called.
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
        names = [getattr(detector, "__name__", type(detector).__name__) for detector in self.detectors]
        self.parts = tuple(f"detector {i} {name}" for i, name in enumerate(names))
        self._containment = containment or Containment("raise")
        self.findings = Findings()
        self._close_after = close_after
        self._troubles: list[Trouble] = []
        self._just_lasted: list[Trouble] = []  # as long as their detectors' patience
        self._harm = Harm()

    def suspects(self, *, agreed: bool) -> list[int]:
        """Return the places of the detectors that should see the next step too, in order.

        They are those of a trouble that has not lasted yet, or just for long enough. The loss has no say in it: it may
        be another in another process.

        Args:
            agreed: consider only gradwatch's detectors, which find the same in every process. One of the user's may
                raise, or decide, in one process alone; the others would then wait for its numbers.
        """
        troubles = [*(trouble for trouble in self._troubles if not self._has_lasted(trouble)), *self._just_lasted]
        places = sorted({trouble.detector for trouble in troubles})
        return [place for place in places if not agreed or _is_ours(self.detectors[place])]

    def check_losses(self, snapshot: Snapshot) -> list[Finding]:
        """Look at the losses after the last measured step; return the findings that open. None closes.

        Only detectors with ``of_losses`` are asked. They are copied first: a run may go on, and would then look at
        these losses a second time. What was kept back, and is not known to do no harm, opens.
        """
        asked: dict[int, Any] = {}
        for i, detector in enumerate(self.detectors):
            if getattr(detector, "of_losses", False):
                asked[i] = self._containment.run(self.parts[i], deepcopy, detector)
        harm, self._harm = self._harm, deepcopy(self._harm)
        self._harm.add(snapshot)
        opened = list(self._open(self._see(snapshot, asked), snapshot))
        opened += self._open(self._troubles, snapshot, is_last=True)
        self._harm = harm
        return opened

    def update(self, snapshot: Snapshot) -> list[Finding]:
        """Look at the next measured step; return the findings that open."""
        self._harm.add(snapshot)
        lasted = {id(trouble) for trouble in self._troubles if self._has_lasted(trouble)}
        seen = self._see(snapshot, dict(enumerate(self.detectors)))
        self._just_lasted = [trouble for trouble in seen if self._has_lasted(trouble) and id(trouble) not in lasted]
        opened = list(self._open(self._troubles, snapshot))
        unseen = [trouble for trouble in self._troubles if not any(trouble is other for other in seen)]
        return [*opened, *self._age(unseen, snapshot.step)]

    def _has_lasted(self, trouble: Trouble) -> bool:
        return trouble.seen >= getattr(self.detectors[trouble.detector], "patience", 1)

    def _see(self, snapshot: Snapshot, asked: Mapping[int, Detector]) -> list[Trouble]:
        """Return the troubles that detectors, by their places, see in a Snapshot."""
        seen: list[Trouble] = []
        for number, detector in asked.items():
            found = self._containment.run(self.parts[number], _ask, detector, snapshot)
            for finding in found or ():
                seen.append(self._trouble_of(number, finding, snapshot, seen))
        return seen

    def _trouble_of(self, number: int, finding: Finding, snapshot: Snapshot, taken: Sequence[Trouble]) -> Trouble:
        for trouble in self._troubles:
            if trouble.detector == number and _is_same(trouble, finding):
                trouble.layers = _in_order((*trouble.layers, *finding.layers), snapshot)
                if trouble.place is not None and finding.severity == "error":
                    break  # where NaN began is what helps; a step later it is everywhere
                if any(trouble is other for other in taken):  # two findings of one trouble, in one step
                    if trouble.finding.latest is None:
                        both = _in_order((*trouble.finding.layers, *finding.layers), snapshot)
                        trouble.finding = replace(trouble.finding, layers=both)
                    return trouble
                if trouble.is_harmless:
                    trouble.finding = finding
                elif self._has_lasted(trouble):
                    trouble.finding = _with_latest(trouble.finding, finding)
                else:
                    trouble.finding = replace(finding, step=trouble.finding.step)
                break
        else:
            trouble = Trouble(number, finding, layers=finding.layers)
            self._troubles.append(trouble)
        trouble.seen, trouble.clean = trouble.seen + 1, 0
        if trouble.place is not None:
            self.findings[trouble.place] = trouble.finding
        return trouble

    def _open(self, troubles: Sequence[Trouble], snapshot: Snapshot, *, is_last: bool = False) -> Iterator[Finding]:
        """Yield the findings that open; close those of a run that does well, which may open again."""
        for trouble in troubles:
            if not self._has_lasted(trouble):
                continue
            detector = self.detectors[trouble.detector]
            verdict = self._harm.of(detector, trouble.finding, snapshot, is_last=is_last)
            if not is_last:  # what only counts early keeps its date
                trouble.is_harmless = verdict == "harmless" and not getattr(detector, "only_early", False)
            if verdict == "hurts" and trouble.place is None:
                trouble.place = len(self.findings)
                self.findings.append(trouble.finding)
                yield trouble.finding
            elif verdict == "harmless" and trouble.place is not None and not is_last:
                self.findings[trouble.place] = replace(trouble.finding, closed_step=snapshot.step)
                trouble.place = None

    def _age(self, unseen: Sequence[Trouble], step: int) -> Iterator[Finding]:
        """Close what is gone; yield what was kept back until then, where the loss is worse than before."""
        for trouble in unseen:
            trouble.clean += 1
            if not self._has_lasted(trouble):
                self._troubles.remove(trouble)
            elif trouble.clean >= self._close_after:
                self._troubles.remove(trouble)
                closed = replace(trouble.finding, closed_step=step)
                if trouble.place is not None:
                    self.findings[trouble.place] = closed
                elif self._harm.has_risen():
                    self.findings.append(closed)
                    yield closed

    def state_dict(self) -> dict[str, Any]:
        """Return the findings, the troubles and the detectors' memories, for a checkpoint."""
        known = {i: d.state_dict for i, d in enumerate(self.detectors) if hasattr(d, "state_dict")}
        memories = {i: self._containment.run(self.parts[i], state_dict) for i, state_dict in known.items()}
        troubles = [{**vars(trouble), "finding": trouble.finding.to_dict()} for trouble in self._troubles]
        findings = [finding.to_dict() for finding in self.findings]
        return {"findings": findings, "tracks": troubles, "memories": memories, "harm": self._harm.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where an earlier run stopped: an open finding stays open until its trouble is gone."""
        self.findings = Findings(Finding.from_dict(item) for item in state["findings"])
        troubles = [Trouble(**{**item, "finding": Finding.from_dict(item["finding"])}) for item in state["tracks"]]
        self._troubles = [trouble for trouble in troubles if trouble.detector < len(self.detectors)]
        for trouble in self._troubles:
            trouble.layers = tuple(trouble.layers)
        self._harm.load_state_dict(state["harm"])
        for number, memory in state["memories"].items():
            if number < len(self.detectors) and hasattr(self.detectors[number], "load_state_dict"):
                self._containment.run(self.parts[number], self.detectors[number].load_state_dict, memory)


def _is_same(trouble: Trouble, new: Finding) -> bool:
    alike = trouble.layers == new.layers or bool(set(trouble.layers) & set(new.layers))
    return trouble.finding.kind == new.kind and alike


def _with_latest(opened: Finding, now: Finding) -> Finding:
    """Return a finding as it opened, with the latest value and the worst."""
    worst = opened.worst or (opened.step, opened.value)
    is_above = opened.value > opened.threshold
    latest = now.step, now.value
    if now.value >= worst[1] if is_above else now.value <= worst[1]:
        worst = latest
    return replace(opened, latest=latest, worst=worst)


def _in_order(names: Sequence[str], snapshot: Snapshot) -> tuple[str, ...]:
    place = {name: i for i, name in enumerate((*snapshot.layers, *snapshot.params))}
    return tuple(sorted(dict.fromkeys(names), key=lambda name: place.get(name, -1)))


def _is_ours(detector: Detector) -> bool:
    return type(detector).__module__.startswith("gradwatch.")


def _ask(detector: Detector, snapshot: Snapshot) -> list[Finding]:
    result: object = detector(snapshot)
    if result is None:
        return []
    several = isinstance(result, Iterable) and not isinstance(result, (str, Mapping))
    findings: list[Finding] = []
    for finding in result if several else [result]:  # type: ignore[attr-defined]
        if not isinstance(finding, Finding):
            raise TypeError(f"a detector returned {finding!r}; expected a gradwatch.Finding, several of them, or None")
        findings.append(finding)
    return findings
