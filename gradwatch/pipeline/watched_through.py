"""A run that a callback watches through a Watcher: the callback shows what the Watcher has."""

from __future__ import annotations

from gradwatch.containment import OutOfService
from gradwatch.pipeline.watcher import Watcher
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.notebook import WatchedRun


class WatchedThrough(WatchedRun):
    """The results of a callback that has a Watcher as ``_watcher``."""

    _watcher: Watcher

    @property
    def findings(self) -> list[Finding]:
        """All Findings of the run, open and closed, in the order they opened."""
        return self._watcher.findings

    @property
    def history(self) -> list[Snapshot]:
        """The measured steps that are kept, in order."""
        return self._watcher.history

    @property
    def steps(self) -> int:
        """The number of optimizer steps of the run so far."""
        return self._watcher.steps

    @property
    def out_of_service(self) -> list[OutOfService]:
        """The parts of the watching that failed and were switched off."""
        return self._watcher.out_of_service

    def diagnosis(self) -> list[Diagnosis]:
        """Return the likely causes of what was found, the likeliest first."""
        return self._watcher.diagnosis()
