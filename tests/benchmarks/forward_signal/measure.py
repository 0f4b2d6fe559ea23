"""Measure what is said of programs whose signal goes wrong on its way forward, of their twins and of look-alikes.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m forward_signal.measure

Each program is trained in a plain loop under `gradwatch.watch`. A fault counts where it diverges, or ends with a loss that
is half a nat, or half of it, above its twin's; it is named where the first cause is one that an expert would accept. A
healthy program, a twin, and a fault that does no harm, are accused where a cause of this benchmark is named, or, for
those that learn, where anything is found.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

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


def main(families: list[str] | None = None, seeds: int = 1, verbose: bool = True) -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for family in families or list(FAMILIES):
        counts = dict.fromkeys(("harmful faults", "found", "named first", "among three"), 0)
        sound, accused = 0, 0
        twins: dict[str, Run] = {}
        for seed, program in ((seed, program) for seed in range(seeds) for program in FAMILIES[family](seed)):
            run = train(program.make(), program.steps)
            harmful = False
            if program.twin is not None:
                key, blamed = f"{program.name.partition(', ')[2]} {seed}", False
                if key not in twins:
                    twins[key] = train(program.twin(), program.steps)
                    blamed = is_accused(replace(program, accepted=()), twins[key])
                    sound, accused = sound + 1, accused + blamed
                twin = twins[key]
                harmful = run.last > twin.last + HARM * max(abs(twin.last), 1.0)
                if blamed:
                    print(f"  TWIN of {program.name}: {twin.first:.3g} to {twin.last:.3g} {twin.kinds} {twin.causes}")
            hit = bool(set(program.accepted) & set(run.causes[:1]))
            if harmful:
                counts["harmful faults"] += 1
                counts["found"] += bool(run.kinds or run.causes)
                counts["named first"] += hit
                counts["among three"] += bool(set(program.accepted) & set(run.causes[:3]))
            else:
                sound += 1
                accused += (blamed := is_accused(program, run))
                if blamed:
                    print(
                        f"  ACCUSED {program.name}: {run.first:.3g} to {run.last:.3g} {run.kinds} {run.causes} {run.evidence}"
                    )
            if harmful and not hit and verbose:
                print(f"  missed {program.name}: {run.first:.3g} to {run.last:.3g} {run.kinds} {run.causes[:3]}")
        total = counts.pop("harmful faults")
        for what, count in counts.items():
            if total:
                low, high = wilson(count, total)
                print(f"{family}: {what}: {count} of {total} ({low:.0%} to {high:.0%})", flush=True)
        low, high = wilson(accused, sound)
        print(f"{family}: accused: {accused} of {sound} without harm ({low:.0%} to {high:.0%})", flush=True)


if __name__ == "__main__":
    auto_cli(main)
