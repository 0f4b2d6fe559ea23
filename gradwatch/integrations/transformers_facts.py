"""Faults that Hugging Face's Trainer and those of TRL know of, and the gradients do not: labels and rewards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from gradwatch.diagnosis.data import CONSTANT, IGNORED
from gradwatch.probe.scalars import Copy
from gradwatch.trainer_internals import notes_of_trl

PART = "the labels"
IGNORE_INDEX = -100  # the label that PyTorch's cross-entropy leaves out, and all of transformers with it
_NO_SPREAD = "frac_reward_zero_std"  # TRL's share of prompts whose completions all got the same reward


class Facts:
    """Looks at the labels of measured steps, and at the rewards that a trainer of TRL has noted.

    The number of labels that count is added up on the device, and read once it has arrived: nothing waits for it.
    """

    def __init__(self) -> None:
        self._is_measured = False
        self._copies: list[Copy] = []
        self._rewards: Callable[[], Mapping[str, Any]] = dict
        self._noted = 0

    def open(self, trainer: object) -> None:
        """Begin to look at what a trainer of TRL notes."""
        self._rewards = partial(_rewards, weakref.ref(trainer)) if trainer is not None else dict

    def begin(self, is_measured: bool) -> None:
        """Begin a step."""
        self._is_measured = is_measured
        self._copies = self._copies if any(not copy.has_arrived for copy in self._copies) else []
        self._noted = len(self._shares())

    @property
    def is_waiting(self) -> bool:
        """Return True while counts of labels have not been read."""
        return bool(self._copies)

    def look(self, inputs: Mapping[str, Any]) -> None:
        """Count the labels of a batch that are not left out."""
        labels = inputs.get("labels")
        if self._is_measured and isinstance(labels, Tensor) and not labels.is_floating_point():
            self._copies.append(Copy((labels != IGNORE_INDEX).sum().reshape(1)))

    def told(self) -> str:
        """Return what is wrong with the step, as ``Snapshot.told`` has it; empty for nothing, or nothing known yet."""
        self._is_measured = False
        shares = self._shares()[self._noted :]
        if shares and min(shares) == 1:
            return CONSTANT
        if not self._copies or not all(copy.has_arrived for copy in self._copies):
            return ""
        counts, self._copies = [float(copy.numbers()[0]) for copy in self._copies], []
        return IGNORED if max(counts) == 0 else ""

    def _shares(self) -> list[float]:
        return list(self._rewards().get(_NO_SPREAD, ()))

    def close(self) -> None:
        """Drop the trainer."""
        self._copies, self._is_measured, self._rewards = [], False, dict


def _rewards(trainer: Callable[[], Any]) -> Mapping[str, Any]:
    return notes_of_trl(trainer())
