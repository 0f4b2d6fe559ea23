"""Words for what could not be written to a record or an event file, and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from gradwatch.containment import error_in_words
from gradwatch.reporting.text import plural


@dataclass(frozen=True)
class Gap:
    """The number of Snapshots and Findings that are missing from a record, and their first and last step.

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
        """Return the gap with one more line, a ``snapshot`` or a ``finding``."""
        count = {f"{kind}s": getattr(self, f"{kind}s") + 1}
        return replace(self, first_step=self.first_step if self.lines else step, last_step=step, **count)

    def as_json(self) -> str:
        """Return the line that a record holds in place of the missing ones."""
        return json.dumps({"type": "lost", **asdict(self)})

    def __str__(self) -> str:
        kinds = {"snapshot": self.snapshots, "finding": self.findings}
        lines = " and ".join(plural(count, noun) for noun, count in kinds.items() if count)
        steps = f"steps {self.first_step} to {self.last_step}"
        return f"{lines} of {f'step {self.first_step}' if self.first_step == self.last_step else steps}"


def disk_error_in_words(error: BaseException) -> str:
    """Return the type and message of an error, for one of the disk without its number and path.

    Example:
        >>> disk_error_in_words(OSError(28, "No space left on device", "/logs/x"))
        'OSError: No space left on device'
    """
    message = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {message}" if message else error_in_words(error)
