"""Measure the time of a watched step as a ratio to a bare Trainer with the same logger.

    python tests/benchmarks/overhead.py --csv_file overhead.csv

It is long: about an hour for all workloads. ``--workloads '[mlp-64]'`` takes one, ``--variants '[gradwatch every 1,
zclip]'`` some of the rows.

All variants train at the same time in one process, each with its own Trainer. They take turns of a few steps, in
another order each time, so a longer disturbance of the machine hits all alike. A turn ends when the logger's writer has
nothing left to do. A round is as many turns as make a whole cycle of measured and unmeasured steps; its ratio is to the
bare fit of the same round. The table gives the median and the range over the rounds, and the same ratio of processor
time, which counts threads that wait. "bare again" is a second bare fit: its distance from 1 is the machine's noise in
every row. Set-up, the dense first steps, pictures and summary are outside of the turns and not measured.
"""

from __future__ import annotations

import gc
import logging
import random
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import Row, publish
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from turns import CannotRun, Cost, Fit
from variants import VARIANTS
from workloads import WORKLOADS


def measure(name: str, chosen: Sequence[str], rounds: int, steps: int | None) -> list[Row]:
    """All rows of one workload: interleaved, after a round that is not counted."""
    workload, order = WORKLOADS[name], random.Random(0)
    steps = steps or workload.steps
    cycle = max(VARIANTS[variant].every for variant in chosen)
    turns = -(-cycle // steps)
    if turns * steps % cycle:
        raise ValueError(f"steps is {steps}; expected a divisor or a multiple of {cycle}, so that rounds are alike")
    reasons = {v: f"left out: {VARIANTS[v].requires} is not installed" for v in chosen if VARIANTS[v].is_missing}
    fits: dict[str, Fit] = {}
    for variant in chosen:
        if variant not in reasons:
            try:
                fits[variant] = Fit(workload, VARIANTS[variant], steps, turns * (rounds + 1))
            except CannotRun as reason:
                reasons[variant] = str(reason)
    taken: dict[str, list[Cost]] = {variant: [] for variant in fits}
    gc.collect()
    gc.freeze()  # or each fit's garbage collections would go through the objects of all
    for _ in track(range(turns * (rounds + 1)), description=name, console=Console(stderr=True)):
        for variant in order.sample([*fits], k=len(fits)):
            taken[variant].append(fits[variant].turn())
    for fit in fits.values():
        fit.close()
    gc.unfreeze()
    costs = {v: by_round(turns_of_fit, turns, turns * steps) for v, turns_of_fit in taken.items()}
    return [row(name, v, reasons[v]) if v in reasons else figures(name, v, costs[v], costs["bare"]) for v in chosen]


def by_round(taken: Sequence[Cost], turns: int, steps: int) -> list[Cost]:
    """The cost of a step in each round."""
    wall, processors = np.array(taken).T.reshape(2, -1, turns).sum(2) / steps
    return list(zip(wall.tolist(), processors.tolist(), strict=True))


def figures(workload: str, variant: str, costs: Sequence[Cost], bare: Sequence[Cost]) -> Row:
    """A row of medians; the first round warmed up and is left out."""
    pairs = list(zip(costs, bare, strict=True))[1:]
    ratios = sorted(ours[0] / theirs[0] for ours, theirs in pairs)
    processors = statistics.median(ours[1] / theirs[1] for ours, theirs in pairs)
    milliseconds = statistics.median(1e3 * ours[0] for ours, _ in pairs)
    numbers = (milliseconds, statistics.median(ratios), ratios[0], ratios[-1], processors)
    return row(workload, variant, "", *(f"{number:.3f}" for number in numbers))


def row(workload: str, variant: str, note: str, *numbers: str) -> Row:
    names = ("ms a step", "ratio", "lowest", "highest", "processor ratio")
    return {
        "workload": workload, "variant": variant, **dict(zip(names, numbers or [""] * len(names), strict=True)),
        "note": note,
    }  # fmt: skip


def main(
    workloads: list[str] | None = None,
    variants: list[str] | None = None,
    rounds: int = 9,
    steps: int | None = None,
    csv_file: Path | None = None,
) -> None:
    """Measure and print the table.

    Args:
        workloads: some of mlp-64, resnet-18, transformer-6, rnn-cell-50; all by default.
        variants: some of the variants, beside the bare run; all by default.
        rounds: number of rounds, after one that is not counted.
        steps: of a turn; by default the workload's.
        csv_file: also write the table here.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    chosen = list(dict.fromkeys(["bare", *(variants or VARIANTS)]))
    for variant in chosen:
        if VARIANTS[variant].is_missing:
            print(f"{variant} is left out: {VARIANTS[variant].requires} is not installed")
    rows = [row for name in workloads or WORKLOADS for row in measure(name, chosen, rounds, steps)]
    publish(rows, csv_file, group="workload")


if __name__ == "__main__":
    auto_cli(main)
