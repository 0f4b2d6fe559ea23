"""The schedule of the measured optimizer steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gradwatch.checks import require_whole


class Schedule:
    """Measures the first ``dense_steps`` steps, then every ``every_n_steps``-th, and a few more after suspicious ones.

    A suspicious step makes the next one measured too, for at most ``10`` steps in a row. That is enough to distinguish
    a lasting problem from a passing one. Each detector has ``20`` such extra steps in a run, so that the first troubles
    that it sees are settled at once. Beyond these, all detectors share one extra step for every two regular ones: a
    trouble that comes and goes for the whole run costs at most half as much as the regular steps.

    Raises:
        ValueError: when one of them is no whole number, or too small.
    """

    _MOST_IN_A_ROW = 10
    _MOST_OF_DETECTOR = 20

    def __init__(self, every_n_steps: int, dense_steps: int) -> None:
        require_whole(None, every_n_steps=every_n_steps)
        require_whole(None, least=0, dense_steps=dense_steps)
        self.every_n_steps, self.dense_steps = int(every_n_steps), int(dense_steps)
        self._extra = self._MOST_IN_A_ROW  # left in this row
        self._is_next_due = False
        self._payers: list[int] = []  # places of the detectors for which the latest extra steps are measured
        self._paid: dict[int, int] = {}  # place of a detector -> extra steps of its own that were measured
        self._shared = 0  # extra steps that were measured beyond these

    def _is_regular(self, step: int) -> bool:
        return step < self.dense_steps or step % self.every_n_steps == 0

    def is_due(self, step: int) -> bool:
        """Return True if this step is to be measured."""
        return self._is_next_due or self._is_regular(step)

    def record(self, step: int, suspects: Collection[int] = ()) -> None:
        """Note that a step was measured.

        Args:
            step: that was measured.
            suspects: places of the detectors to which it looked wrong, and that should see the next step too.
        """
        if self._is_regular(step):
            self._extra, self._payers = self._MOST_IN_A_ROW, []
        else:
            self._extra -= 1
            self._pay()
        able = [place for place in suspects if self._has_own(place) or self._shared < step // (2 * self.every_n_steps)]
        self._is_next_due = bool(able) and self._extra > 0
        # From a device this step arrives late: the steps until then were measured for those who paid last.
        self._payers = able or self._payers

    def _has_own(self, place: int) -> bool:
        return self._paid.get(place, 0) < self._MOST_OF_DETECTOR

    def _pay(self) -> None:
        able = [place for place in self._payers if self._has_own(place)]
        for place in able:
            self._paid[place] = self._paid.get(place, 0) + 1
        self._shared += bool(self._payers and not able)

    def look_again(self) -> None:
        """Measure the next step too, whatever was measured before."""
        self._is_next_due, self._payers = True, []

    def state_dict(self) -> dict[str, Any]:
        """Return the number of extra steps left, who has paid for them, and if the next step is one."""
        row = {"extra": self._extra, "look_again": self._is_next_due, "payers": list(self._payers)}
        return {**row, "paid": dict(self._paid), "shared": self._shared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state, maybe of an older version, in which nobody has paid."""
        self._extra, self._is_next_due = int(state["extra"]), bool(state["look_again"])
        self._payers, self._paid = list(state.get("payers", ())), dict(state.get("paid", {}))
        self._shared = int(state.get("shared", 0))
