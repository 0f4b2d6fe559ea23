"""Writes a run's Snapshots and Findings to its loggers, the record and the terminal, whatever trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gradwatch.containment import say
from gradwatch.pipeline.about import classes_around
from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.layers import named_parameters, plain_name
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.block_values import BlockValues
from gradwatch.reporting.html.page import require_plotly
from gradwatch.reporting.html.report import write_report
from gradwatch.reporting.html.verdict import verdict_of
from gradwatch.reporting.loggers import alert_text
from gradwatch.reporting.parquet import open_record
from gradwatch.reporting.pictures import draw_run
from gradwatch.reporting.record import Record
from gradwatch.reporting.record_files import local_path, remote_url
from gradwatch.reporting.sink import Sink
from gradwatch.reporting.terminal import print_summary
from gradwatch.reporting.text import clip_text, listed

_PICTURE_SHARE = 0.01  # of the time since the start may go into pictures; they cost a quarter of a second each
_PICTURE_GROWTH = 1.1  # by this the time has to grow from one drawing to the next: about 80 of them in a day, not 1700
_FIRST_PICTURE = 30.0  # seconds


@dataclass(frozen=True)
class Places:
    """The places that a run writes to, and what is said of it there.

    Attributes:
        record: path of the record, in Parquet where it ends in ``.parquet``, else JSONL; None writes none.
        report: path of the report that is written at the end; None writes none.
        summary: print the table of layers and findings at the end.
        sinks: what makes the place of each logger, by its name in warnings.
        settings: returns the run's settings by name; asked at the first measured step.
        tell: says where the record is.
        close: is called when all is written.
    """

    record: str | Path | None = None
    report: str | Path | None = None
    summary: bool = True
    sinks: Mapping[str, Callable[[], Sink]] = field(default_factory=dict)
    settings: Callable[[Watcher], Mapping[str, str]] = lambda watcher: {}
    tell: Callable[[str], object] = print
    close: Callable[[], object] = lambda: None


class Reports:
    """All places that one run writes to; each is switched off alone when it fails.

    Args:
        module: that is trained.
        watcher: of the run.
        places: makes the places to write to.
    """

    def __init__(self, module: nn.Module, watcher: Watcher, places: Places) -> None:
        self._containment = containment = watcher.containment
        self._module, self._places = module, places
        self._record_part = f"record {places.record}"
        self._record = containment.run(self._record_part, open_record, places.record) if places.record else None
        if self._record:
            places.tell(f"gradwatch: the record of this run is {self._record.path}")
        self._report_part = f"report {places.report}"
        if places.report:  # what it needs is missed now, not after days
            containment.run(self._report_part, require_plotly)
        self._settings: dict[str, str] | None = None
        self._modules: dict[str, str] = {}
        sinks = {part: containment.run(part, make) for part, make in places.sinks.items()}
        self._blocks = BlockValues()
        self._sinks: dict[str, Sink] = {part: sink for part, sink in sinks.items() if sink is not None}
        self.crash = ""  # the error that ended the run, in words
        self._written: list[Finding] = []
        self._alerted = {finding.kind for finding in watcher.findings}  # an earlier run has sent these
        self._verdict = ""
        self._failures = 0  # number of failed parts that are in the record
        self._has_news = False
        self._started = time.monotonic()
        self._drawing = 0.0
        self._draw_from = _FIRST_PICTURE

    @property
    def record_path(self) -> str | Path | None:
        """The record that is written; None where none is."""
        return self._record.path if self._record else None

    def write(self, watcher: Watcher, snapshot: Snapshot) -> None:
        """Write the latest Snapshot, and the Findings that opened or closed with it."""
        self._has_news, run = True, self._containment.run
        shown = run("values by block", self._blocks, snapshot, watcher.findings) or snapshot
        self._show("", lambda sink: sink.snapshot(shown))
        if self._record:
            run(self._record_part, self._record.snapshot, snapshot)
        if self._settings is None:
            self._settings = {}
            run("settings in the report", self._note_settings, watcher, snapshot)
        self._write_findings(watcher)
        if time.monotonic() - self._started > self._draw_from:
            self._draw(watcher)

    def _show(self, what: str, act: Callable[[Sink], None]) -> None:
        """Do something with each logger; where that fails, this logger gets no more of the kind.

        Where a logger does not even take numbers, nothing else is tried.
        """
        for part, sink in self._sinks.items():
            if not self._containment.is_out(part):
                self._containment.run(f"{what} for {part}" if what else part, act, sink)

    def _note_settings(self, watcher: Watcher, snapshot: Snapshot) -> None:
        """Note the settings at the first measured step: the optimizers exist by then."""
        self._settings = dict(self._places.settings(watcher))
        self._modules = classes_around(self._module, snapshot.layers)
        watcher.about = {"settings": self._settings, "modules": self._modules}
        if self._record:
            self._containment.run(self._record_part, self._record.about, self._settings, self._modules)

    def _write_findings(self, watcher: Watcher) -> None:
        known = [_state(finding) for finding in self._written]
        changed = [finding for finding in watcher.findings if _state(finding) not in known]
        self._written = list(watcher.findings)
        if self._record:
            for finding in changed:
                self._containment.run(self._record_part, self._record.finding, finding)
        if changed and watcher.history:
            diagnoses = self._diagnoses(watcher)
            self._write_text(watcher, diagnoses)
            self._alert(changed, diagnoses)
        self._write_failures()

    def _write_failures(self) -> None:
        """Write the parts that have failed since the last call into the record."""
        failures = self._containment.failures
        new, self._failures = failures[self._failures :], len(failures)
        for failure in new if self._record else []:
            self._containment.run(self._record_part, self._record.out_of_service, failure)  # type: ignore[union-attr]

    def _diagnoses(self, watcher: Watcher) -> list[Diagnosis]:
        return self._containment.run("diagnosis", watcher.diagnosis) or []

    def _write_text(self, watcher: Watcher, diagnoses: list[Diagnosis]) -> None:
        at, clip = watcher.history[-1].step, clip_text(watcher.history)
        self._show("findings", lambda sink: sink.findings(watcher.findings, diagnoses, at, clip))
        self._set_verdict(watcher, diagnoses)

    def _set_verdict(self, watcher: Watcher, diagnoses: list[Diagnosis]) -> None:
        """Set the verdict where it is new."""
        verdict = self._containment.run("verdict", verdict_of, watcher.history, watcher.findings, diagnoses, {})
        sentence = verdict.sentence.replace("`", "") if verdict else ""
        if sentence != self._verdict:
            self._verdict = sentence
            self._show("verdict", lambda sink: sink.verdict(sentence, _open_causes(diagnoses)))

    def _alert(self, changed: list[Finding], diagnoses: list[Diagnosis]) -> None:
        """Alert once for each kind of finding: one that comes and goes would send a mail each time."""
        for finding in changed:
            if finding.is_open and finding.kind not in self._alerted:
                self._alerted.add(finding.kind)
                self._send(finding, alert_text(finding, diagnoses))

    def _send(self, finding: Finding, text: str) -> None:
        self._show("alerts", lambda sink: sink.alert(finding, text))

    def _draw(self, watcher: Watcher) -> None:
        if not any(sink.shows_pictures and not self._containment.is_out(part) for part, sink in self._sinks.items()):
            return
        began = time.monotonic()
        pictures = self._containment.run("pictures", draw_run, watcher.history, watcher.findings)
        if pictures:
            self._show("pictures", lambda sink: sink.pictures(pictures, watcher.history[-1].step))
        now = time.monotonic()
        self._drawing += now - began
        least = (now - self._started) * _PICTURE_GROWTH
        self._draw_from = max(self._drawing / _PICTURE_SHARE + _FIRST_PICTURE, least)

    def histograms(self, step: int) -> None:
        """Write histograms of all gradients."""
        params = {plain_name(name): param for name, param, _ in named_parameters(self._module)}
        self._show("histograms", lambda sink: sink.histograms(params, step))

    def close(self, watcher: Watcher) -> None:
        """Draw the last pictures, print the summary, write the report and close the record, where there was news."""
        diagnoses: list[Diagnosis] = []
        if watcher.history and (self._has_news or len(self._written) != len(watcher.findings)):
            self._write_findings(watcher)  # of the last steps, which were not measured
            diagnoses = self._diagnoses(watcher)
            is_cause_alone = any(not diagnosis.findings for diagnosis in diagnoses)
            if is_cause_alone or clip_text(watcher.history):
                self._write_text(watcher, diagnoses)
            self._set_verdict(watcher, diagnoses)
            self._show("the end", lambda sink: sink.end(self._verdict, _open_causes(diagnoses)))
            self._draw(watcher)
            if self._record:
                self._containment.run(self._record_part, self._record.diagnoses, diagnoses)
        self._write_failures()
        notes = [*([self.crash] if self.crash else []), *self._unwatched(watcher), *self._troubles()]
        notes += map(str, self._containment.failures)
        if self._places.summary and watcher.history and self._has_news:
            args = (watcher.history[-1], watcher.findings, diagnoses, "", None, notes, watcher.history)
            self._containment.run("summary", self._print_summary, *args)
        if self._places.report and watcher.history and self._has_news:
            self._containment.run(self._report_part, self._write_report, watcher, diagnoses)
        if self._record:
            self._containment.run(self._record_part, self._record.close)
        self._containment.run("the end of the reports", self._places.close)

    def _print_summary(self, *args: Any) -> None:
        print_summary(*args)
        if self._record:
            self._places.tell(f"gradwatch: the record is in {self._record.path}")

    def _write_report(self, watcher: Watcher, diagnoses: list[Diagnosis]) -> None:
        path = self._places.report
        assert path
        failures = list(self._containment.failures)
        settings = {**(self._settings or {}), **({"ended by": self.crash} if self.crash else {})}
        known: dict[str, Any] = {"out_of_service": failures, "settings": settings, "modules": self._modules}
        record = Record(watcher.history, watcher.findings, **known)
        title = f"{type(self._module).__name__}, {path}"
        written = write_report(path, record, diagnoses, title)
        print(f"gradwatch: the report is in {written}")
        if not remote_url(written):  # loggers take files of this machine
            self._show("the report", lambda sink: sink.report(local_path(written)))

    def _unwatched(self, watcher: Watcher) -> list[str]:
        names = self._containment.run("the layers left out", lambda: watcher.unwatched)
        return [f"not watched, as include and exclude say: {listed(names)}"] if names else []

    def _troubles(self) -> list[str]:
        """Return in words what was not written, and warn of it once, at the end, instead of at each step."""
        parts: list[Any] = [*self._sinks.values(), *([self._record] if self._record else [])]
        troubles = [trouble for part in parts if (trouble := part.trouble)]
        for trouble in troubles:
            say(trouble)
        return troubles


def _open_causes(diagnoses: Iterable[Diagnosis]) -> list[str]:
    """Return the causes of what is wrong now."""
    return [d.cause for d in diagnoses if not d.findings or any(finding.is_open for finding in d.findings)]


def _state(finding: Finding) -> tuple[str, int, int | None, tuple[str, ...]]:
    return finding.kind, finding.step, finding.closed_step, finding.layers
