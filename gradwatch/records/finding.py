"""A Finding: something that is wrong, and what finds it or tells of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from gradwatch.records.snapshot import Snapshot

Kind = Literal["vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "spike"]
Severity = Literal["warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: it opens at ``step``, lasts, and closes at ``closed_step``.

    Attributes:
        kind: one of ``vanishing exploding nonfinite dead saturated stalled spike``, or the name of your own.
        layers: the layers (or parameters, or quantities such as ``loss``) it is about, in network order.
        step: optimizer step at which it began.
        value: what was measured.
        threshold: what it was held against.
        message: a sentence with value, threshold and the next thing to try.
        severity: ``"error"`` where training can't go on (NaN, Inf), else ``"warning"``.
        closed_step: optimizer step at which it was found gone; None while it lasts.

    Example:
        >>> Finding("vanishing", ("first",), step=3, value=1e-7, threshold=1e-3, message="it vanishes").is_open
        True
    """

    kind: str
    layers: tuple[str, ...]
    step: int
    value: float
    threshold: float
    message: str
    severity: Severity = "warning"
    closed_step: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the trouble was still there at the last measured step."""
        return self.closed_step is None


class GradientWarning(UserWarning):
    """What ``on_finding="warn"`` emits when a finding opens."""


class GradientError(RuntimeError):
    """What ``on_finding="raise"`` raises when a finding opens; ``finding`` holds it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding

    def __reduce__(self) -> tuple[type[GradientError], tuple[Finding]]:
        return type(self), (self.finding,)


Detector = Callable[[Snapshot], "Iterable[Finding] | Finding | None"]
"""What looks at a Snapshot and returns what is wrong in it, if anything. A plain function is one."""
