"""Measure the time of a watched step as a ratio to a bare Trainer with the same logger.

    python tests/benchmarks/overhead.py --csv_file overhead.csv

    python tests/benchmarks/overhead.py --whole_fits 3 --fit_steps 500 --csv_file whole_fits.csv

It is long: about an hour and a half for all workloads. ``--workloads '[mlp-64]'`` takes one, ``--variants '[gradwatch
every 1, zclip]'`` some of the rows.

All variants train at the same time in one process, each with its own Trainer. They take turns of a few steps, in
another order each time, so a longer disturbance of the machine hits all alike. A turn ends when the logger's writer has
nothing left to do. A round is as many turns as make a whole cycle of measured and unmeasured steps; its ratio is to the
bare fit of the same round. The table gives the median and the range over the rounds, and the same ratio of processor
time, which counts threads that wait. "bare again" is a second bare fit: its distance from 1 is the machine's noise in
every row. Set-up, the dense first steps, the last pictures and the summary are outside of the turns and not measured.

``--whole_fits`` measures these too, and nothing else: the time of whole, short fits, from the call of ``trainer.fit``
to its return, with a plain ``GradientMonitor()``. So the ratio includes the search for the layers, the dense first
steps, the record, TensorBoard, the pictures, and the table at the end, whose text is thrown away. The fits take turns
in the same way, and a monitor's clock stands still between them: it draws as many pictures as in a fit that runs alone.
First a short fit of each is run that is not counted, as it imports modules. Three fits of 500 steps, of three variants,
take as long as 4,500 bare steps: about 70 seconds for the MLP, and 50 minutes for ResNet-18.
"""

from __future__ import annotations

import gc
import logging
import random
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from figures import Row, publish
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from turns import Baton, CannotRun, Cost, Fit
from variants import DENSE, VARIANTS, WHOLE_FITS, Variant
from workloads import WORKLOADS, Workload

ALL = {**VARIANTS, **WHOLE_FITS}
WARM_UP = 10  # steps of the fits that are not counted, before whole ones


def measure(name: str, chosen: Sequence[str], rounds: int, steps: int | None) -> list[Row]:
    """All rows of one workload: interleaved, after a round that is not counted."""
    workload, order = WORKLOADS[name], random.Random(0)
    steps = steps or workload.steps
    cycle = max(ALL[variant].every for variant in chosen)
    turns = -(-cycle // steps)
    if turns * steps % cycle:
        raise ValueError(f"steps is {steps}; expected a divisor or a multiple of {cycle}, so that rounds are alike")
    reasons = missing(name, chosen)
    fits: dict[str, Fit] = {}
    first = DENSE + 1
    for variant in (variant for variant in chosen if variant not in reasons):
        fit = Fit(workload, ALL[variant], Baton(first, steps), first + steps * turns * (rounds + 1) + 1)
        try:
            fit.turn()  # the dense steps
        except CannotRun as reason:
            reasons[variant] = str(reason)
        else:
            fits[variant] = fit
    taken: dict[str, list[Cost]] = {variant: [] for variant in fits}
    with objects_frozen():
        for _ in progress(range(turns * (rounds + 1)), name):
            for variant in order.sample([*fits], k=len(fits)):
                taken[variant].append(fits[variant].turn())
        for fit in fits.values():
            fit.close()
    costs = {v: by_round(turns_of_fit, turns, turns * steps) for v, turns_of_fit in taken.items()}
    return [row(name, v, reasons[v]) if v in reasons else figures(name, v, costs[v], costs["bare"]) for v in chosen]


def measure_whole(name: str, chosen: Sequence[str], fits: int, length: int, steps: int | None) -> list[Row]:
    """All rows of one workload, of ``fits`` whole fits of ``length`` steps, in turns of ``steps``."""
    reasons, order = missing(name, chosen), random.Random(0)
    able = [variant for variant in chosen if variant not in reasons]
    taken: dict[str, list[Cost]] = {variant: [] for variant in able}
    for count in progress([min(WARM_UP, length), *[length] * fits] if able else [], name):
        for variant, cost in side_by_side(name, able, count, steps, order).items():
            taken[variant].append((cost[0] / count, cost[1] / count))
    note = f"whole fits of {length} steps"
    return [
        row(name, v, reasons[v]) if v in reasons else figures(name, v, taken[v], taken["bare"], note) for v in chosen
    ]


def side_by_side(
    name: str, chosen: Sequence[str], length: int, steps: int | None, order: random.Random
) -> dict[str, Cost]:
    """The costs of whole fits, one of each variant, that take turns of a few steps."""
    workload = WORKLOADS[name]
    fits = {v: Fit(workload, ALL[v], Baton(0, steps or workload.steps), length) for v in chosen}
    spent = {variant: np.zeros(2) for variant in chosen}
    with objects_frozen():
        while running := [variant for variant in chosen if not fits[variant].is_over]:
            for variant in order.sample(running, k=len(running)):
                spent[variant] += fits[variant].turn()
    for fit in fits.values():
        fit.close()
    return {variant: (float(cost[0]), float(cost[1])) for variant, cost in spent.items()}


def missing(name: str, chosen: Sequence[str]) -> dict[str, str]:
    """Variant -> the reason for which it can't be measured on a workload here."""
    needed = {v: (WORKLOADS[name] if WORKLOADS[name].is_missing else ALL[v]) for v in chosen}
    return {v: f"left out: {by.requires} is not installed" for v, by in needed.items() if by.is_missing}


@contextmanager
def objects_frozen() -> Iterator[None]:
    """Hide all objects from the garbage collector, or each fit's collections would go through those of all fits."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def progress(steps: Sequence[int], name: str) -> Iterator[int]:
    # Not stderr=True: the console would write to where stderr is sent during a turn.
    yield from track(steps, description=name, console=Console(file=sys.stderr))


def by_round(taken: Sequence[Cost], turns: int, steps: int) -> list[Cost]:
    """The cost of a step in each round."""
    wall, processors = np.array(taken).T.reshape(2, -1, turns).sum(2) / steps
    return list(zip(wall.tolist(), processors.tolist(), strict=True))


def figures(workload: str, variant: str, costs: Sequence[Cost], bare: Sequence[Cost], note: str = "") -> Row:
    """A row of medians; the first round warmed up and is left out."""
    pairs = list(zip(costs, bare, strict=True))[1:]
    ratios = sorted(ours[0] / theirs[0] for ours, theirs in pairs)
    processors = statistics.median(ours[1] / theirs[1] for ours, theirs in pairs)
    milliseconds = statistics.median(1e3 * ours[0] for ours, _ in pairs)
    numbers = (milliseconds, statistics.median(ratios), ratios[0], ratios[-1], processors)
    return row(workload, variant, note, *(f"{number:.3f}" for number in numbers))


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
    whole_fits: int = 0,
    fit_steps: int = 500,
) -> None:
    """Measure and print the table.

    Args:
        workloads: some of those of workloads.py; all by default.
        variants: some of the variants, beside the bare run; all by default, and for whole fits a second bare fit and
            the default monitor.
        rounds: number of rounds, after one that is not counted; not of whole fits.
        steps: of a turn; by default the workload's.
        csv_file: also write the table here.
        whole_fits: measure this number of whole fits instead of rounds.
        fit_steps: of each whole fit.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    chosen = list(dict.fromkeys(["bare", *(variants or (WHOLE_FITS if whole_fits else VARIANTS))]))
    names = list(workloads or WORKLOADS)
    asked: dict[str, Workload | Variant] = {name: WORKLOADS[name] for name in names}
    for name, needed in (asked | {name: ALL[name] for name in chosen}).items():
        if needed.is_missing:
            print(f"{name} is left out: {needed.requires} is not installed")
    if whole_fits:
        rows = [row for name in names for row in measure_whole(name, chosen, whole_fits, fit_steps, steps)]
    else:
        rows = [row for name in names for row in measure(name, chosen, rounds, steps)]
    publish(rows, csv_file, group="workload")


if __name__ == "__main__":
    auto_cli(main)
