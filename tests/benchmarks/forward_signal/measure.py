"""Measure what is said of programs whose signal goes wrong on its way forward, of their twins and of look-alikes.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m forward_signal.measure

Each program is trained in a plain loop under `gradwatch.watch`. A fault counts where it diverges, or ends with a
loss that is above its twin's by half of that, or by half a nat; it is named where the first cause is one that an expert
would accept. A healthy program, a twin, and a fault that does no harm, are accused where an unbounded activation is
named, or, for those that are sound and learn, where anything is found.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace

import torch
from detection.intervals import wilson
from forward_signal.programs import FAMILIES, Program, Training
from jsonargparse import auto_cli

import gradwatch

HARM = 0.5  # of the loss, beside the twin's; by judgement
LEARNED = 0.7  # last loss over the first, of a run that learns
LAST = 5  # losses


@dataclass(frozen=True)
class Run:
    """The outcome of one training, and what was said of it."""

    first: float
    last: float
    kinds: tuple[str, ...]
    causes: tuple[str, ...]
    evidence: tuple[str, ...]

    @property
    def learns(self) -> bool:
        return self.last < LEARNED * self.first


def train(training: Training, steps: int) -> Run:
    """Train and return the outcome."""
    losses = []
    with gradwatch.watch(training.model, on_finding=lambda finding: None) as watch:
        for _, (x, y) in zip(range(steps), training.batches, strict=False):
            loss = training.loss(training.model, x, y)
            training.optimizer.zero_grad()
            loss.backward()
            watch.step(training.optimizer, loss)
            losses.append(loss.item())
    last = sorted(losses[-LAST:], key=lambda each: math.inf if math.isnan(each) else each)[LAST // 2]
    said = watch.diagnosis()
    return Run(
        losses[0], math.inf if math.isnan(losses[-1]) else last, tuple(f.kind for f in watch.findings),
        tuple(d.cause for d in said), tuple(d.evidence for d in said),
    )  # fmt: skip


def is_accused(program: Program, run: Run) -> bool:
    """Return True if a run that is not at fault is blamed for what this benchmark is about, or for anything."""
    wrong = bool(set(program.never) & set(run.causes))
    return wrong or (run.learns and not program.accepted and bool(run.kinds or run.causes))


@dataclass
class Tally:
    """What was counted in a family of programs; each twin is trained once."""

    verbose: bool
    harmful: int = 0
    found: int = 0
    first: int = 0
    three: int = 0
    sound: int = 0
    accused: int = 0
    twins: dict[str, Run] = field(default_factory=dict)

    def add(self, program: Program, seed: int) -> None:
        """Train a program, and its twin where it has one."""
        run = train(program.make(), program.steps)
        if program.twin is not None:
            twin = self._twin(program, f"{program.name.partition(', ')[2]} {seed}")
            if run.last > twin.last + HARM * max(abs(twin.last), 1.0):
                self._add_harmful(program, run)
                return
        self._add_sound(program, run)

    def _twin(self, program: Program, key: str) -> Run:
        if key not in self.twins:
            assert program.twin is not None
            self.twins[key] = train(program.twin(), program.steps)
            self._add_sound(replace(program, name=f"twin of {program.name}", accepted=()), self.twins[key])
        return self.twins[key]

    def _add_harmful(self, program: Program, run: Run) -> None:
        accepted = set(program.accepted)
        self.harmful += 1
        self.found += bool(run.kinds or run.causes)
        self.first += bool(accepted & set(run.causes[:1]))
        self.three += bool(accepted & set(run.causes[:3]))
        if self.verbose and not accepted & set(run.causes[:1]):
            print(f"  missed {program.name}: {run.first:.3g} to {run.last:.3g}", run.kinds, run.causes[:3])

    def _add_sound(self, program: Program, run: Run) -> None:
        self.sound += 1
        if is_accused(program, run):
            self.accused += 1
            print(f"  ACCUSED {program.name}: {run.first:.3g} to {run.last:.3g}", run.kinds, run.causes, *run.evidence)


def main(families: list[str] | None = None, seeds: int = 1, verbose: bool = True) -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for family in families or list(FAMILIES):
        tally = Tally(verbose)
        for seed in range(seeds):
            for program in FAMILIES[family](seed):
                tally.add(program, seed)
        counts = {"found": tally.found, "named first": tally.first, "among three": tally.three}
        rows = [(what, count, tally.harmful) for what, count in counts.items() if tally.harmful]
        for what, count, total in [*rows, ("accused, of those without harm", tally.accused, tally.sound)]:
            low, high = wilson(count, total)
            print(f"{family}: {what}: {count} of {total} ({low:.0%} to {high:.0%})", flush=True)


if __name__ == "__main__":
    auto_cli(main)
