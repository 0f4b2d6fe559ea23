"""What could not be written, and why, in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Gap:
    """Lines that are missing from a record.

    Attributes:
        snapshots: how many Snapshots are missing.
        findings: how many Findings are missing.
        first_step: step of the first missing line.
        last_step: step of the last one.

    Example:
        >>> gap = Gap().widened("snapshot", 40).widened("snapshot", 41).widened("finding", 41)
        >>> print(gap)
        2 snapshots and 1 finding of steps 40 to 41
        >>> gap.as_json()
        '{"type": "lost", "snapshots": 2, "findings": 1, "first_step": 40, "last_step": 41}'
    """

    snapshots: int = 0
    findings: int = 0
    first_step: int = 0
    last_step: int = 0

    @property
    def lines(self) -> int:
        """Number of all missing lines."""
        return self.snapshots + self.findings

    def widened(self, kind: str, step: int) -> Gap:
        """Return the gap with one line more, a ``snapshot`` or a ``finding``."""
        count = {f"{kind}s": getattr(self, f"{kind}s") + 1}
        return replace(self, first_step=self.first_step if self.lines else step, last_step=step, **count)

    def as_json(self) -> str:
        """Return the line that stands in a record in the place of the missing ones."""
        return json.dumps({"type": "lost", **asdict(self)})

    def __str__(self) -> str:
        counts = [counted(number, noun) for number, noun in self._counts() if number]
        first, last = self.first_step, self.last_step
        return f"{' and '.join(counts)} of {f'step {first}' if first == last else f'steps {first} to {last}'}"

    def _counts(self) -> list[tuple[int, str]]:
        return [(self.snapshots, "snapshot"), (self.findings, "finding")]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it has to be.

    Example:
        >>> counted(1, "event"), counted(3, "event")
        ('1 event', '3 events')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def in_words(error: BaseException) -> str:
    """Return the type and message of an error, of an error of the disk without number and path.

    Example:
        >>> in_words(OSError(28, "No space left on device", "/logs/x")), in_words(KeyError("a"))
        ('OSError: No space left on device', "KeyError: 'a'")
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
