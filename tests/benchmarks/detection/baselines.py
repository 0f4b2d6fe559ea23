"""Published rules, on the same runs.

Thresholds are those of the sources. Their further conditions are left out, except for the five steps in a row that a
value must be out of range, since single steps are in every run. AUTOTRAINER: Zhang et al.,
AUTOTRAINER, ICSE 2021. SageMaker Debugger: the built-in rules of Amazon SageMaker Debugger, MLSys 2021 and its
documentation. TheDeepChecker: Ben Braiek and Khomh, Testing Feedforward Neural Networks Training Programs, TOSEM 2023.
DeepDiagnosis: Wardat et al., ICSE 2022. z-score: the statistic and settings of ZClip, Kumar et al., arXiv 2504.02507.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator

from program import Program
from recording import Recording, Step
from training import build, train
from watching import Run, Said

IN_A_ROW = 5


class Rules(ABC):
    """A published set of rules: from a Step to the names of its problems."""

    name: str

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    @abstractmethod
    def look(self, step: Step) -> Iterator[str]:
        """Return the names of the problems."""

    def lasting(self, what: str, holds: bool) -> bool:
        """Return True if it has held for five steps in a row."""
        self._rows[what] = self._rows[what] + 1 if holds else 0
        return self._rows[what] >= IN_A_ROW


def _bad(values: Iterable[float]) -> bool:
    return not all(math.isfinite(value) for value in values)


class OnlyNaN(Rules):
    name = "NaN only"

    def look(self, step: Step) -> Iterator[str]:
        if _bad((step.loss, step.total_norm)):
            yield "nonfinite"


class ZScore(Rules):
    """The total norm over 2.5 deviations above its moving mean, after 25 steps."""

    name = "z-score"

    def __init__(self) -> None:
        super().__init__()
        self.first: list[float] = []
        self.mean = self.variance = 0.0

    def look(self, step: Step) -> Iterator[str]:
        norm = step.total_norm
        if not math.isfinite(norm):
            yield "nonfinite"
        elif len(self.first) < 25:
            self.first.append(norm)
            self.mean = sum(self.first) / len(self.first)
            self.variance = sum((value - self.mean) ** 2 for value in self.first) / len(self.first)
        else:
            z = (norm - self.mean) / (self.variance**0.5 + 1e-6)
            norm = min(norm, self.mean + 2.5 * self.variance**0.5) if z > 2.5 else norm
            self.mean = 0.97 * self.mean + 0.03 * norm
            self.variance = 0.97 * self.variance + 0.03 * (norm - self.mean) ** 2
            if z > 2.5:
                yield "spike"


class AutoTrainer(Rules):
    name = "AUTOTRAINER"

    def look(self, step: Step) -> Iterator[str]:
        norms = list(step.grad_norm.values())
        if not norms:
            return
        ratio = norms[0] / norms[-1] if norms[-1] else math.nan
        if ratio < 1e-3 and norms[0] < 1e-4:
            yield "vanishing"
        if ratio > 70 or _bad(norms):
            yield "exploding"
        if step.idle and any(share >= 0.7 for share in step.grad_zeros.values()):
            yield "dying ReLU"


class SageMaker(Rules):
    name = "SageMaker Debugger"

    def look(self, step: Step) -> Iterator[str]:
        if any(mean < 1e-7 for mean in step.grad_mean.values()):
            yield "vanishing"
        if _bad(step.grad_norm.values()) or _bad((step.loss,)):
            yield "exploding"
        if any(share > 0.5 for share in step.idle.values()):
            yield "dead ReLU"
        if any(share > 0.5 for share in step.beyond_9.values()):
            yield "saturated"
        variances = [value for value in step.weight_variance.values() if value > 0]
        if step.index == 0 and variances and max(variances) / min(variances) > 10:
            yield "poor initialization"
        if any(not 1e-8 <= size <= 10 for size in step.update.values() if not math.isnan(size)):
            yield "update ratio"


class DeepChecker(Rules):
    name = "TheDeepChecker"

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, float] = {}

    def look(self, step: Step) -> Iterator[str]:
        for kernel, mean in step.grad_mean.items():
            ratio = mean / self.before[kernel] if self.before.get(kernel) else 1.0
            if mean < 1e-6 or self.lasting(f"falls {kernel}", ratio <= 0.5):
                yield "vanishing"
            if not mean <= 1e6 or self.lasting(f"grows {kernel}", ratio >= 2):
                yield "exploding"
        self.before = step.grad_mean
        for kernel, size in step.update.items():
            if self.lasting(f"update {kernel}", not 1e-4 <= size <= 1e-1):
                yield "update size"
        for module, spread in step.spread.items():
            if self.lasting(f"spread {module}", not 0.5 <= spread <= 2):
                yield "activation range"


class DeepDiagnosis(Rules):
    name = "DeepDiagnosis"

    def look(self, step: Step) -> Iterator[str]:
        if any(mean < 1e-7 for mean in step.grad_mean.values()):
            yield "vanishing"
        if any(step.below[module] >= 0.7 for module in step.idle):
            yield "dying ReLU"
        if any(share > 0.5 for share in step.beyond_5.values()):
            yield "saturated"
        if _bad((step.loss, *step.grad_norm.values())):
            yield "nonfinite"


BASELINES: tuple[type[Rules], ...] = (OnlyNaN, ZScore, AutoTrainer, SageMaker, DeepChecker, DeepDiagnosis)


def judged(program: Program, seed: int) -> Run:
    """Train the program under all published rules; a finding's kind is ``rules: name``, at its first step."""
    network, optimizer = build(program, seed)
    first: dict[str, int] = {}
    rules = [make() for make in BASELINES]

    def look(step: Step) -> None:
        for rule in rules:
            for what in rule.look(step):
                first.setdefault(f"{rule.name}: {what}", step.index)

    recording = Recording(network, look)
    try:
        outcome = train(program, network, optimizer, seed, recording)
    finally:
        recording.close()
    return Run(outcome, tuple(Said(step, kind) for kind, step in sorted(first.items(), key=lambda item: item[1])))


def of_rules(run: Run, name: str) -> Run:
    """Return the run with the findings of one set of rules."""
    said = tuple(found for found in run.said if found.kind.startswith(f"{name}: "))
    return Run(run.outcome, said)
