"""Measure the cost of a measured step as the model grows: in layers (10 to 1,000) and in parameters (1e5 to 1e8).

    python tests/benchmarks/scaling.py --csv_file scaling.csv

It is long: some minutes, and the largest model needs about 2 GB of memory.

A fit measures every fourth step, so measured and unmeasured steps alternate in one process. The cost of a measured step
is the time of the first two steps of each cycle of four, less that of the last two: the writer's thread still works
during the second step. The table gives the median and the quartiles over all cycles, and the median of the same in
processor time, which a busy machine disturbs less. It also gives a straight line through the medians: the cost at size
zero, the slope, and R squared. The growth in layers is that of a chain of Linears of
width 16; in parameters, of ten Linears that grow wider.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from figures import Row, publish
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import track
from torch import nn
from workloads import CLASSES, Workload

from gradwatch import GradientMonitor

CYCLE = 4
WARM_UP = 2  # cycles


def chain(layers: int, width: int) -> nn.Module:
    """Linears that keep the size of what flows through them, both ways, so that no detector asks for more steps."""
    linears = [nn.Linear(width, width) for _ in range(layers)]
    for linear in linears:
        nn.init.eye_(linear.weight)
    return nn.Sequential(*linears)


def workload(layers: int, width: int, batch: int = 8) -> Workload:
    if width < CLASSES:
        raise ValueError(f"{layers} layers of width {width} have no room for {CLASSES} classes; expected a larger size")
    return Workload(lambda: chain(layers, width), lambda: torch.randn(batch, width), CYCLE)


@dataclass(frozen=True)
class Axis:
    """One way to grow.

    Attributes:
        sizes: of the models.
        make: size -> workload.
        unit: of the slope: microseconds a layer, nanoseconds a parameter.
    """

    sizes: tuple[int, ...]
    make: Callable[[int], Workload]
    unit: tuple[str, float]


AXES = {
    "layers": Axis((10, 50, 100, 200, 400, 700, 1000), lambda n: workload(n, width=16), ("us a layer", 1e3)),
    "parameters": Axis(
        (10**5, 10**6, 10**7, 3 * 10**7, 6 * 10**7, 10**8),
        lambda n: workload(10, width=round((n / 10) ** 0.5)),
        ("ns a parameter", 1e6),
    ),
}


@dataclass
class Steps(Callback):
    """The start of each step, in seconds and processor seconds; the last entry only ends the step before."""

    begun: list[tuple[float, float]] = field(default_factory=list)

    def on_train_batch_start(self, *_: object) -> None:
        self.begun.append((time.perf_counter(), time.process_time()))


Costs = npt.NDArray[np.float64]


def costs(model: Workload, cycles: int) -> Costs:
    """Milliseconds of each cycle over one fit: of an unmeasured step, the cost of the measured one, on processors."""
    steps, monitor = Steps(), GradientMonitor(every_n_steps=CYCLE, dense_steps=0, summary=False, record_path=False)
    gc.collect()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer = Trainer(
            accelerator="cpu", max_steps=CYCLE * (WARM_UP + cycles) + 1, logger=TensorBoardLogger(folder),
            callbacks=[steps, monitor],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model.module(), model.loader())
    odd = {snapshot.step for snapshot in monitor.history if snapshot.step % CYCLE}
    if odd:
        raise RuntimeError(f"the steps {sorted(odd)} were measured too; the model is sick: {monitor.findings}")
    wall, processors = 1e3 * np.diff(steps.begun, axis=0).T.reshape(2, -1, CYCLE)[:, WARM_UP:]
    over = [times[:, :2].sum(1) - times[:, 2:].sum(1) for times in (wall, processors)]
    return np.stack([wall[:, 2:].mean(1), *over])


def grow(name: str, sizes: Sequence[int], rounds: int, cycles: int) -> list[Row]:
    """A row for each size, interleaved over the rounds."""
    axis = AXES[name]
    taken: dict[int, list[Costs]] = {size: [] for size in sizes}
    models = {size: axis.make(size) for size in sizes}
    for size in track(list(sizes) * rounds, description=name, console=Console(stderr=True)):
        taken[size].append(costs(models[size], cycles))
    whole = {size: np.concatenate(fits, axis=1) for size, fits in taken.items()}
    lines = [Line.through(sizes, [float(np.median(whole[size][i])) for size in sizes]) for i in (1, 2)]
    for line, what in zip(lines, ("costs", "takes of the processors"), strict=True):
        print(f"{name}: a measured step {what} {line.describe(*axis.unit)}")
    return [row(name, size, whole[size], lines[0]) for size in sizes]


@dataclass(frozen=True)
class Line:
    """A straight line by least squares: milliseconds over size."""

    slope: float
    start: float
    r_squared: float

    @classmethod
    def through(cls, sizes: Sequence[int], milliseconds: Sequence[float]) -> Line:
        slope, start = np.polyfit(sizes, milliseconds, 1)
        left = np.square(milliseconds - np.polyval((slope, start), sizes)).sum()
        return cls(float(slope), float(start), float(1 - left / np.square(milliseconds - np.mean(milliseconds)).sum()))

    def describe(self, unit: str, scale: float) -> str:
        return f"{self.start:.2f} ms + {self.slope * scale:.2f} {unit}, R^2 {self.r_squared:.4f}"


def row(axis: str, size: int, taken: Costs, line: Line) -> Row:
    idle, cost, processors = np.median(taken, axis=1)
    low, high = np.percentile(taken[1], (25, 75))
    return {
        "axis": axis, "size": size, "unmeasured ms": f"{idle:.3f}", "cost ms": f"{cost:.3f}",
        "lower quartile": f"{low:.3f}", "upper quartile": f"{high:.3f}", "processor ms": f"{processors:.3f}",
        "on the line": f"{line.start + line.slope * size:.3f}", "slope": f"{line.slope:.4g}",
        "R^2": f"{line.r_squared:.4f}",
    }  # fmt: skip


def main(
    axes: list[str] | None = None,
    sizes: list[int] | None = None,
    rounds: int = 3,
    cycles: int = 10,
    csv_file: Path | None = None,
) -> None:
    """Measure and print the tables.

    Args:
        axes: layers, parameters or both; both by default.
        sizes: of the models, in place of the default sizes.
        rounds: number of fits of each size, interleaved.
        cycles: measured steps of a fit, after two that are not counted.
        csv_file: also write the table here; the slope is in milliseconds a layer or parameter.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = [row for name in axes or AXES for row in grow(name, sizes or AXES[name].sizes, rounds, cycles)]
    publish(rows, csv_file, group="axis")


if __name__ == "__main__":
    auto_cli(main)
