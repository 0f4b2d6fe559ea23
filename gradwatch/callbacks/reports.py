"""Where a fit's Snapshots and Findings are written: loggers, record, terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from gradwatch.callbacks.refusals import is_a
from gradwatch.probe.layers import plain_name
from gradwatch.records import Finding, Snapshot
from gradwatch.reporting.jsonl import JsonlRecord
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.tensorboard import TensorBoardReport
from gradwatch.reporting.terminal import print_summary
from gradwatch.watch import Watcher

_PICTURE_SHARE = 0.01  # of the time since the start may go into pictures; they cost a quarter of a second each


class Reports:
    """Everything that one fit writes to.

    Args:
        trainer: its loggers are written to.
        record_path: where the JSONL record goes; None writes none.
    """

    def __init__(self, trainer: Trainer, record_path: str | Path | None) -> None:
        boards: list[Any] = [logger for logger in trainer.loggers if is_a(logger, "TensorBoardLogger")]
        self._boards = [TensorBoardReport(logger.experiment) for logger in boards]
        self._others: list[Logger] = [logger for logger in trainer.loggers if logger not in boards]
        self._record = JsonlRecord(record_path) if record_path else None
        self._written: list[Finding] = []
        self._started = time.monotonic()
        self._drawing = 0.0

    def take(self, watcher: Watcher, snapshot: Snapshot) -> None:
        """Write the latest Snapshot, and what opened or closed with it."""
        for board in self._boards:
            board.snapshot(snapshot)
        if self._others:
            values = scalars(snapshot)
            for logger in self._others:
                logger.log_metrics(values, step=snapshot.step)
        if self._record:
            self._record.snapshot(snapshot)
        self._take_findings(watcher)
        if time.monotonic() - self._started > self._drawing / _PICTURE_SHARE + 30:
            self._draw(watcher)

    def _take_findings(self, watcher: Watcher) -> None:
        known = [_state(finding) for finding in self._written]
        changed = [finding for finding in watcher.findings if _state(finding) not in known]
        self._written = list(watcher.findings)
        for finding in changed:
            if self._record:
                self._record.finding(finding)
        if changed:
            for board in self._boards:
                board.findings(watcher.findings, watcher.diagnosis(), watcher.history[-1].step)

    def _tell_of_causes(self, watcher: Watcher) -> None:
        """Write the text again where a cause is known that no finding told of."""
        diagnoses = watcher.diagnosis()
        for board in self._boards if any(not diagnosis.findings for diagnosis in diagnoses) else []:
            board.findings(watcher.findings, diagnoses, watcher.history[-1].step)

    def _draw(self, watcher: Watcher) -> None:
        started = time.monotonic()
        for board in self._boards:
            board.pictures(watcher.history, watcher.findings)
        self._drawing += time.monotonic() - started

    def histograms(self, module: LightningModule, step: int) -> None:
        """Write histograms of all gradients."""
        for board in self._boards:
            board.histograms({plain_name(name): param for name, param in module.named_parameters()}, step)

    def close(self, watcher: Watcher, *, summary: bool) -> None:
        """Draw the last pictures, print the summary and close the record."""
        if watcher.history:
            self._take_findings(watcher)  # of the last steps, which were not measured
            self._tell_of_causes(watcher)
            self._draw(watcher)
            if summary:
                print_summary(watcher.history[-1], watcher.findings, watcher.diagnosis())
        if self._record:
            self._record.close()


def open_reports(trainer: Trainer, record_path: str | Path | None) -> Reports | None:
    """What the first process writes to; None in the others. The record's place is the logger's folder by default."""
    folder = trainer.log_dir if trainer.loggers else None  # asks all ranks, so all have to ask
    record = record_path or (Path(folder) / "gradwatch.jsonl" if folder else None)
    return Reports(trainer, record) if trainer.is_global_zero else None


def _state(finding: Finding) -> tuple[str, int, int | None, tuple[str, ...]]:
    return finding.kind, finding.step, finding.closed_step, finding.layers
