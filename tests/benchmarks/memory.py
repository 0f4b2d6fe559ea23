"""Measure the memory that watching takes over a long fit, against a bare one, and its growth.

    python tests/benchmarks/memory.py --csv_file memory.csv

It is long: 20,000 steps of the 64-layer MLP take some minutes for each variant. The batch is small, as the memory of
watching depends on layers and steps. Each variant runs in a separate process, since memory that one run leaves in the
allocator would hide the next run's.

The figures are the process's resident memory, as the kernel counts it (``/proc``, so this runs on Linux): the peak from
the start of training to the end of the fit, pictures included, its growth over the second half as a straight line
through samples, and the tensors that the garbage collector knows at half and at the end. Allowed is a peak of 1 % or
64 MB over the bare run's, whichever is larger, and a growth of 1 % of the bare run's peak over the second half. A run
that measures every 50th step keeps adding Snapshots for 25,000 steps, until its history is full.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import sys
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from figures import Row, publish
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from variants import VARIANTS
from workloads import WORKLOADS

SAMPLES = 400  # of the resident memory, over a run
MOST_OVER, MOST_MEGABYTES = 0.01, 64.0


def resident() -> float:
    """Resident memory of this process, in megabytes."""
    return _status("VmRSS")


def peak() -> float:
    """The peak resident memory of this process, in megabytes; unlike ``getrusage``, without its parent's."""
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}; expected a Linux kernel")


def live_tensors() -> int:
    """Return the number of tensors that Python holds after a collection."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@dataclass
class Watchman(Callback):
    """Samples the resident memory, and counts the live tensors at half and at the end."""

    steps: int
    samples: list[tuple[int, float]] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        step = trainer.global_step
        if step % max(1, self.steps // SAMPLES) == 0:
            self.samples.append((step, resident()))
        if step in (self.steps // 2, self.steps - 1):
            self.tensors.append(live_tensors())


@dataclass(frozen=True)
class Footprint:
    """The memory of one run.

    Attributes:
        start: resident megabytes when training began.
        peak: the most until the end of the fit.
        growth: megabytes over the second half, on a straight line.
        slope: kilobytes a step over the second half.
        tensors: live ones at half and at the end.
    """

    start: float
    peak: float
    growth: float
    slope: float
    tensors: tuple[int, int]


def run(workload: str, variant: str, steps: int, batch: int) -> Footprint:
    """One fit in this process."""
    whole = WORKLOADS[workload]
    small = replace(whole, inputs=lambda: whole.inputs()[:batch])
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watchman = Watchman(steps)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        callback = VARIANTS[variant].callback(folder)
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, logger=TensorBoardLogger(folder),
            callbacks=[watchman, *filter(None, [callback])],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(small.module(), small.loader())
    late = np.array([sample for sample in watchman.samples if sample[0] >= steps // 2])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    half, end = watchman.tensors
    return Footprint(watchman.samples[0][1], peak(), slope * (steps - steps // 2), slope * 1024, (half, end))


def row(workload: str, variant: str, found: Footprint, bare: Footprint) -> Row:
    over, allowed = found.peak - bare.peak, max(MOST_OVER * bare.peak, MOST_MEGABYTES)
    fits = over <= allowed and found.growth <= max(0.0, bare.growth) + MOST_OVER * bare.peak
    return {
        "workload": workload, "variant": variant, "start MB": f"{found.start:.1f}", "peak MB": f"{found.peak:.1f}",
        "over bare MB": f"{over:.1f}", "allowed MB": f"{allowed:.1f}",
        "growth of 2nd half MB": f"{found.growth:.2f}", "KB a step": f"{found.slope:.4f}",
        "tensors at half": found.tensors[0], "at the end": found.tensors[1],
        "verdict": "within" if fits else "too much",
    }  # fmt: skip


def main(
    workloads: list[str] | None = None,
    variants: list[str] | None = None,
    steps: int = 20_000,
    batch: int = 8,
    csv_file: Path | None = None,
) -> None:
    """Measure and print the table.

    Args:
        workloads: some of those of workloads.py; mlp-64 by default.
        variants: beside the bare run; "gradwatch every 1" and "gradwatch every 50" by default.
        steps: number of optimizer steps.
        batch: at most so many samples a step.
        csv_file: also write the table here.
    """
    if steps < 4:
        raise ValueError(f"steps is {steps}; expected at least 4, so that the second half has two samples")
    chosen = dict.fromkeys(["bare", *(variants or ["gradwatch every 1", "gradwatch every 50"])])
    rows: list[Row] = []
    for name in workloads or ["mlp-64"]:
        found: dict[str, Footprint] = {}
        for variant in chosen:
            print(f"{name}, {variant}: {steps} steps", file=sys.stderr)
            with multiprocessing.get_context("spawn").Pool(1) as process:
                found[variant] = process.apply(run, (name, variant, steps, batch))
        rows += [row(name, variant, footprint, found["bare"]) for variant, footprint in found.items()]
    publish(rows, csv_file, group="workload")


if __name__ == "__main__":
    auto_cli(main)
