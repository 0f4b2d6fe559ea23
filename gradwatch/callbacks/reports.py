"""Writes a fit's Snapshots and Findings to its loggers, the record and the terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from gradwatch.callbacks.about import classes_around, settings_of
from gradwatch.callbacks.trainer_checks import has_class_named
from gradwatch.containment import say
from gradwatch.pipeline.watcher import Watcher
from gradwatch.probe.layers import named_parameters, plain_name
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.html.page import require_packages
from gradwatch.reporting.html.report import write_report
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.record import JsonlRecord, Record
from gradwatch.reporting.tensorboard import TensorBoardReport
from gradwatch.reporting.terminal import print_summary
from gradwatch.reporting.text import clip_text

_PICTURE_SHARE = 0.01  # of the time since the start may go into pictures; they cost a quarter of a second each


@dataclass(frozen=True)
class Wanted:
    """The files and texts that a fit is asked for.

    Attributes:
        record_path: of the JSONL record; None takes ``gradwatch.jsonl`` in the logger's folder.
        summary: print the table of layers and findings at the end.
        report: write the report at the end: a path, or True for one beside the record.
    """

    record_path: str | Path | None = None
    summary: bool = True
    report: bool | str | Path = False


class Reports:
    """All places that one fit writes to; each is switched off alone when it fails.

    Args:
        trainer: whose loggers are written to.
        module: that is trained.
        watcher: of the fit.
        record_path: None writes no record.
        report_path: None writes no report.
        summary: print the table at the end.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        watcher: Watcher,
        record_path: str | Path | None,
        report_path: str | Path | None,
        summary: bool,
    ) -> None:
        self._containment = containment = watcher.containment
        self._summary = summary
        self._report_path, self._report_part = report_path, f"report {report_path}"
        if report_path:  # what it needs is missed now, not after days
            containment.run(self._report_part, require_packages)
        self._trainer, self._module = trainer, module
        self._settings: dict[str, str] | None = None
        self._modules: dict[str, str] = {}
        boards: list[Any] = [logger for logger in trainer.loggers if has_class_named(logger, "TensorBoardLogger")]
        reports = {f"TensorBoard in {logger.log_dir}": logger for logger in boards}
        reports = {part: containment.run(part, _report_of, logger) for part, logger in reports.items()}
        self._boards = {part: report for part, report in reports.items() if report is not None}
        others = [logger for logger in trainer.loggers if logger not in boards]
        self._others = {f"logger {i} {type(logger).__name__}": logger for i, logger in enumerate(others)}
        self._record_part = f"record {record_path}"
        self._record = containment.run(self._record_part, JsonlRecord, record_path) if record_path else None
        self.crash = ""  # the error that ended the fit, in words
        self._written: list[Finding] = []
        self._failures = 0  # number of failed parts that are in the record
        self._has_news = False
        self._started = time.monotonic()
        self._drawing = 0.0

    def write(self, watcher: Watcher, snapshot: Snapshot) -> None:
        """Write the latest Snapshot, and the Findings that opened or closed with it."""
        self._has_news, run = True, self._containment.run
        for part, board in self._boards.items():
            run(part, board.snapshot, snapshot)
        if self._others:
            values = scalars(snapshot)
            for part, logger in self._others.items():
                run(part, _log, logger, values, snapshot.step)
        if self._record:
            run(self._record_part, self._record.snapshot, snapshot)
        if self._settings is None:
            self._settings = {}
            run("settings in the report", self._note_settings, watcher, snapshot)
        self._write_findings(watcher)
        if time.monotonic() - self._started > self._drawing / _PICTURE_SHARE + 30:
            self._draw(watcher)

    def _note_settings(self, watcher: Watcher, snapshot: Snapshot) -> None:
        """Note the settings at the first measured step: the optimizers exist by then."""
        self._settings = settings_of(self._trainer, self._module, watcher)
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
            self._write_text(watcher, self._diagnoses(watcher))
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
        for part, board in self._boards.items():
            self._containment.run(part, board.findings, watcher.findings, diagnoses, at, clip)

    def _draw(self, watcher: Watcher) -> None:
        started = time.monotonic()
        for part, board in self._boards.items():
            if not self._containment.is_out(part):
                self._containment.run(f"pictures for {part}", board.pictures, watcher.history, watcher.findings)
        self._drawing += time.monotonic() - started

    def histograms(self, module: LightningModule, step: int) -> None:
        """Write histograms of all gradients."""
        for part, board in self._boards.items():
            if not self._containment.is_out(part):
                self._containment.run(f"histograms for {part}", _write_histograms, board, module, step)

    def close(self, watcher: Watcher) -> None:
        """Draw the last pictures, print the summary, write the report and close the record, where there was news."""
        diagnoses: list[Diagnosis] = []
        if watcher.history and (self._has_news or len(self._written) != len(watcher.findings)):
            self._write_findings(watcher)  # of the last steps, which were not measured
            diagnoses = self._diagnoses(watcher)
            is_cause_alone = any(not diagnosis.findings for diagnosis in diagnoses)
            if is_cause_alone or clip_text(watcher.history):
                self._write_text(watcher, diagnoses)
            self._draw(watcher)
            if self._record:
                self._containment.run(self._record_part, self._record.diagnoses, diagnoses)
        self._write_failures()
        notes = [*([self.crash] if self.crash else []), *self._troubles(), *map(str, self._containment.failures)]
        if self._summary and watcher.history and self._has_news:
            args = (watcher.history[-1], watcher.findings, diagnoses, "", None, notes, watcher.history)
            self._containment.run("summary", print_summary, *args)
        if self._report_path and watcher.history and self._has_news:
            self._containment.run(self._report_part, self._write_report, watcher, diagnoses)
        if self._record:
            self._containment.run(self._record_part, self._record.close)

    def _write_report(self, watcher: Watcher, diagnoses: list[Diagnosis]) -> None:
        assert self._report_path
        failures = list(self._containment.failures)
        settings = {**(self._settings or {}), **({"ended by": self.crash} if self.crash else {})}
        known: dict[str, Any] = {"out_of_service": failures, "settings": settings, "modules": self._modules}
        record = Record(watcher.history, watcher.findings, **known)
        title = f"{type(self._module).__name__}, {self._report_path}"
        print(f"gradwatch: the report is in {write_report(self._report_path, record, diagnoses, title)}")

    def _troubles(self) -> list[str]:
        """Return in words what was not written, and warn of it once, at the end, instead of at each step."""
        parts: list[Any] = [*self._boards.values(), *([self._record] if self._record else [])]
        troubles = [trouble for part in parts if (trouble := part.trouble)]
        for trouble in troubles:
            say(trouble)
        return troubles


def open_reports(trainer: Trainer, module: LightningModule, watcher: Watcher, wanted: Wanted) -> Reports | None:
    """Return the reports of the first process; None in the others.

    The record is in the logger's folder by default, which may be remote (``s3://...``). The report is beside it, and in
    the Trainer's folder where there is none.
    """
    folder = trainer.log_dir if trainer.loggers else None  # a broadcast: all ranks have to ask
    record = wanted.record_path or (f"{folder}/gradwatch.jsonl" if folder else None)
    report = (
        _beside(record or f"{trainer.default_root_dir}/gradwatch.jsonl") if wanted.report is True else wanted.report
    )
    if not trainer.is_global_zero:
        return None
    return Reports(trainer, module, watcher, record, report or None, wanted.summary)


def _beside(record: str | Path) -> str:
    """Return the path of the report of a record, which may be remote.

    Example:
        >>> _beside("s3://bucket/run.jsonl")
        's3://bucket/run.html'
    """
    text = record.as_posix() if isinstance(record, PurePath) else str(record)
    return f"{text.removesuffix('.jsonl')}.html"


def _report_of(logger: Any) -> TensorBoardReport:
    return TensorBoardReport(logger.experiment)


def _log(logger: Logger, values: dict[str, float], step: int) -> None:
    logger.log_metrics(values, step=step)


def _write_histograms(board: TensorBoardReport, module: LightningModule, step: int) -> None:
    board.histograms({plain_name(name): param for name, param, _ in named_parameters(module)}, step)


def _state(finding: Finding) -> tuple[str, int, int | None, tuple[str, ...]]:
    return finding.kind, finding.step, finding.closed_step, finding.layers
