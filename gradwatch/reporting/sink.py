"""The base of all places where a run is shown: each method does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.pictures import Picture

Params = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class Sink:
    """A place where a run is shown. Each method may do nothing, and may raise what the place raises.

    Attributes:
        shows_pictures: False spares the drawing.
    """

    shows_pictures = False

    @property
    def trouble(self) -> str:
        """The losses that raised no error, in words."""
        return ""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write the numbers of a measured step."""

    def findings(self, findings: Sequence[Finding], diagnoses: Sequence[Diagnosis], step: int, note: str) -> None:
        """Write all findings of the run with their causes, and a note; called when one has opened or closed."""

    def pictures(self, pictures: Mapping[str, Picture], step: int) -> None:
        """Write the pictures of the run up to a step, by their tags."""

    def histograms(self, params: Params, step: int) -> None:
        """Write histograms of gradients."""

    def alert(self, finding: Finding, text: str) -> None:
        """Tell people who are not looking that a finding has opened."""

    def verdict(self, sentence: str, causes: Sequence[str]) -> None:
        """Set the state of the run, to be seen in a list of runs."""

    def end(self, sentence: str, causes: Sequence[str]) -> None:
        """Write what is written once, when the run has ended, with its last verdict."""

    def report(self, path: Path) -> None:
        """Keep the report with the run."""
