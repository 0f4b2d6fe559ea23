"""What watching costs: the time of a step as a ratio to a bare Trainer with the same logger.

    python tests/benchmarks/overhead.py --rounds 7 --csv_file overhead.csv

It is long: about ten minutes for the 64-layer MLP, an hour for all workloads. ``--workloads '[mlp-64]'`` takes one,
``--variants '[gradwatch every 1, zclip]'`` some of the rows.

All variants run in one process, once in each round, in another order in each; a round's figure is the mean time of a
step after the dense first ones, and its ratio is to the bare run of the same round. The table gives the median and the
range over the rounds, and the same ratio of processor time, which a busy machine disturbs less but which counts
threads that wait. "bare again" is a second bare run: how far its range is from 1 is what the machine's noise does to
every other row. What comes before the first and after the last timed step (set-up, pictures, summary) is not in it.
"""

from __future__ import annotations

import gc
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from figures import Row, publish
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import track
from variants import DENSE, VARIANTS, Variant
from workloads import WORKLOADS, Workload

Cost = tuple[float, float]  # seconds of a step, and seconds of all processors


class CannotRun(Exception):
    """Why a variant has no figure on a workload."""


class Timer(Callback):
    """Mean cost of a step, from the begin of step ``first`` to the begin of step ``first + steps``."""

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.steps = first, steps

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.first:
            self.begin = time.perf_counter(), time.process_time()
        elif trainer.global_step == self.first + self.steps:
            self.end = time.perf_counter(), time.process_time()

    @property
    def cost(self) -> Cost:
        wall, processors = ((end - begin) / self.steps for begin, end in zip(self.begin, self.end, strict=True))
        return wall, processors


def cost_of_a_step(workload: Workload, variant: Variant, steps: int) -> Cost:
    """Mean cost of a step over one fit.

    Raises:
        CannotRun: when the variant fails on this workload.
    """
    timer = Timer(DENSE + 1, steps)
    gc.collect()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        callback = variant.callback(folder)
        trainer = Trainer(
            accelerator="cpu", max_steps=timer.first + steps + 1, logger=TensorBoardLogger(folder),
            callbacks=[timer, *filter(None, [callback])],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        try:
            trainer.fit(workload.module(), workload.loader())
        except RuntimeError as error:
            raise CannotRun(f"cannot run: {str(error).splitlines()[0]}") from error
    return timer.cost


def measure(name: str, chosen: Sequence[str], rounds: int, steps: int | None) -> list[Row]:
    """All rows of one workload: interleaved, after a round that is not counted."""
    workload, order = WORKLOADS[name], random.Random(0)
    cycle = max(VARIANTS[variant].every for variant in chosen)
    steps = -(-(steps or workload.steps) // cycle) * cycle  # whole cycles of measured and unmeasured steps
    costs: dict[str, list[Cost]] = {variant: [] for variant in chosen}
    reasons = {v: f"left out: {VARIANTS[v].requires} is not installed" for v in chosen if VARIANTS[v].is_missing}
    for _ in track(range(rounds + 1), description=name, console=Console(stderr=True)):
        for variant in order.sample([v for v in chosen if v not in reasons], k=len(chosen) - len(reasons)):
            try:
                costs[variant].append(cost_of_a_step(workload, VARIANTS[variant], steps))
            except CannotRun as reason:
                reasons[variant] = str(reason)
    return [row(name, v, reasons[v]) if v in reasons else figures(name, v, costs[v], costs["bare"]) for v in chosen]


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
    rounds: int = 5,
    steps: int | None = None,
    csv_file: Path | None = None,
) -> None:
    """Measure and print the table.

    Args:
        workloads: some of mlp-64, resnet-18, transformer-6, rnn-cell-50; all by default.
        variants: some of the variants, beside the bare run; all by default.
        rounds: how often each is run, after one round that is not counted.
        steps: how many steps a run times, rounded up to whole cycles; by default what suits the workload.
        csv_file: where the table goes too.
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
