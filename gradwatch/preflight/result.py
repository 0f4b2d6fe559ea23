"""What a preflight found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.terminal import layer_table
from gradwatch.reporting.verdict import verdict
from gradwatch.runs.result import as_text


@dataclass(frozen=True, eq=False)
class Preflight:
    """What one forward and backward pass tells before any training.

    Attributes:
        name: class of the module.
        snapshot: the pass, measured; None where it crashed.
        diagnoses: what is wrong, the likeliest cause first; empty for a healthy network.
        findings: what the detectors found in the pass.
        chi: activation -> by how much it and the layer before it multiply the square of the gradient: below 1 it fades
            with depth, above 1 it grows (Schoenholz et al., Deep Information Propagation, 2017).
        notes: further measurements, as sentences.

    Example:
        >>> print(Preflight("Net", Snapshot(0, ("a",)), notes=("The inputs are scaled.",)))
        healthy before training: Net
        layer
        ─────
        a
        The inputs are scaled.
    """

    name: str
    snapshot: Snapshot | None = None
    diagnoses: list[Diagnosis] = field(default_factory=list)
    findings: tuple[Finding, ...] = ()
    chi: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.diagnoses

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render the layers, the notes and the verdict."""
        state, style = ("healthy", "bold green") if self.is_healthy else ("not healthy", "bold red")
        yield Text(f"{state} before training: {self.name}", style=style)
        if self.snapshot is not None:
            mark = "#" if options.ascii_only else "\N{BLACK SQUARE}"
            yield layer_table(self.snapshot, self.findings, "", options.max_width, mark)
        for note in self.notes:
            yield Text(note, style="dim")
        if self.diagnoses:
            yield Text()
            yield verdict((), self.diagnoses)

    def __str__(self) -> str:
        return as_text(self)
