"""The schedule of the measured optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping

from gradwatch.checks import require_whole


class Schedule:
    """Measures the first ``dense_steps`` steps, then every ``every_n_steps``-th, and a few more after suspicious ones.

    A suspicious step makes the next one measured too, for at most ``10`` steps in a row. That is enough to distinguish
    a lasting problem from a passing one, and limits the cost.

    Raises:
        ValueError: when one of them is no whole number, or too small.
    """

    _MOST_EXTRA = 10

    def __init__(self, every_n_steps: int, dense_steps: int) -> None:
        require_whole(None, every_n_steps=every_n_steps)
        require_whole(None, least=0, dense_steps=dense_steps)
        self.every_n_steps, self.dense_steps = int(every_n_steps), int(dense_steps)
        self._extra = self._MOST_EXTRA
        self._is_next_due = False

    def _is_regular(self, step: int) -> bool:
        return step < self.dense_steps or step % self.every_n_steps == 0

    def is_due(self, step: int) -> bool:
        """Return True if this step is to be measured."""
        return self._is_next_due or self._is_regular(step)

    def record(self, step: int, *, suspicious: bool) -> None:
        """Note that a step was measured, and if anything looked wrong."""
        self._extra = self._MOST_EXTRA if self._is_regular(step) else self._extra - 1
        self._is_next_due = suspicious and self._extra > 0

    def look_again(self) -> None:
        """Measure the next step too."""
        self._is_next_due = True

    def state_dict(self) -> dict[str, int | bool]:
        """Return the number of extra steps left, and if the next step is one, for a checkpoint."""
        return {"extra": self._extra, "look_again": self._is_next_due}

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        """Go on from such a state."""
        self._extra, self._is_next_due = int(state["extra"]), bool(state["look_again"])
