"""The course of the loss: whether a run learns, beyond the noise of its own losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gradwatch.plain_values import of_type

Course = Literal["learns", "not learning", "too few steps", "no loss"]

_BLOCKS = 64  # kept; when there are more, neighbours are merged
_TO_SEE_LEARNING, _TO_SEE_NONE = 6, 60  # losses
_BEYOND_NOISE = 3.0  # standard errors


@dataclass(frozen=True)
class Judgement:
    """The state of the loss after some steps.

    Attributes:
        course: ``learns``: the loss has come down beyond its own noise. ``not learning``: enough steps were made, and
            it has not. ``too few steps``: neither can be said yet. ``no loss``: none is known, or it is no measure of
            progress.
        steps, needed: losses that are known, and how many are needed to say that a run does not learn.
        start, now: typical loss of the first steps and of the latest.
        noise: standard error of the difference of these two.
    """

    course: Course
    steps: int
    needed: int
    start: float = float("nan")
    now: float = float("nan")
    noise: float = float("nan")


class Progress:
    """Takes in the losses of a run in order, and judges its course. The memory is bounded: medians of 64 blocks.

    Example:
        >>> progress = Progress()
        >>> progress.add(np.linspace(2.0, 0.5, 40))
        >>> progress.judge().course
        'learns'
    """

    def __init__(self) -> None:
        self._medians: list[float] = []
        self._open: list[float] = []  # losses of the block that is not full
        self._width = 1
        self._count = 0

    def add(self, losses: Iterable[float]) -> None:
        """Take in losses, one for each optimizer step; those that are not finite are left out."""
        for loss in losses:
            if not np.isfinite(loss):
                continue
            self._count += 1
            self._open.append(float(loss))
            if len(self._open) == self._width:
                self._medians.append(float(np.median(self._open)))
                self._open = []
            if len(self._medians) == 2 * _BLOCKS:
                self._medians = [(a + b) / 2 for a, b in zip(self._medians[::2], self._medians[1::2], strict=True)]
                self._width *= 2

    def judge(self) -> Judgement:
        """Return the judgement of all losses so far."""
        if not self._count:
            return Judgement("no loss", 0, _TO_SEE_NONE)
        row = np.array(self._medians)
        part = max(1, min(len(row) // 4, 16))
        start, now = float(np.median(row[:part])), float(np.median(row[-part:]))
        steps = np.abs(np.diff(row))
        spread = float(np.median(steps)) * 1.4826 / 2**0.5 if len(steps) else float("inf")
        noise = spread * (2 / part) ** 0.5
        course: Course = "too few steps"
        if self._count >= _TO_SEE_LEARNING and start - now > _BEYOND_NOISE * noise:
            course = "learns"
        elif self._count >= _TO_SEE_NONE:
            course = "not learning"
        return Judgement(course, self._count, _TO_SEE_NONE, start, now, noise)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"medians": self._medians, "open": self._open, "width": self._width, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self._medians, self._open = list(state["medians"]), list(state["open"])
        self._width, self._count = of_type(int, state["width"]), of_type(int, state["count"])
