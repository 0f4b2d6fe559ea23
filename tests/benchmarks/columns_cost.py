"""Measure the cost of each group of columns at a measured step.

    python tests/benchmarks/columns_cost.py --csv_file columns_cost.csv

It takes some minutes for the four workloads. ``--workloads '[mlp-64]'`` takes one.

A fit measures every fourth step, so that hooks are put in place and removed as by default. For the length of the fit
the functions of READINGS are timed, each without the others that it calls. A row has the time that a group's functions
take in a measured step: the median and the lower quartile, the share of a bare step, and the number of calls; and the
median in an unmeasured step. A bare step is an unmeasured one less all groups.

The last rows are all groups together, the rest of the step, and the whole step. The rest is the training itself. In a
measured step it is longer: torch calls the hooks, the processor's cache holds what was read last, and to time a call
takes about a microsecond. That microsecond is no part of the groups.

The logger's writer works in another thread while the training goes on. Here each step waits for it at its end, and that
time counts as TensorBoard's.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from figures import Row, publish
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import track
from stopwatch import Lap, Stopwatch
from workloads import MAIN, WORKLOADS

from gradwatch import GradientMonitor

PROBE = "gradwatch.probe"
# Group -> the columns that it gives, and the functions that read them: by the module that calls them, as modules import
# each other's functions by name. A function belongs to one group.
READINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "outputs": ("output_rms", (f"{PROBE}.hooks:LayerHooks._read_size",)),
    "saturation": ("saturated_fraction", (f"{PROBE}.hooks:saturated_share",)),
    "units": (
        "dead_fraction",
        (
            f"{PROBE}.hooks:LayerHooks._read_units", f"{PROBE}.sums:peaks_by_layer", f"{PROBE}.sums:add_units",
            f"{PROBE}.dead_units:UnitActivity.dead_shares",
        ),
    ),
    "inputs": ("input_rms", (f"{PROBE}.hooks:LayerHooks._read_inputs",)),
    "gradients at outputs": (
        "grad_output_norm, grad_output_rms, gain, calls",
        (f"{PROBE}.hooks:LayerHooks._on_gradient", f"{PROBE}.scalars:DeviceScalars.norm"),
    ),
    "time steps": ("calls", (f"{PROBE}.time_steps:TimeHooks._on_gradient",)),
    "graph": ("feeds", (f"{PROBE}.hooks:LayerHooks._note_in_graph", f"{PROBE}.layer_graph:LayerGraph.pairs")),
    "end of the loss": (
        "broadcast, classes, last_activation, out_of_reach, least_error, code",
        (f"{PROBE}.probe:read_end", f"{PROBE}.hooks:LayerHooks.code_layers"),
    ),
    "constant prediction": (
        "chance",
        (f"{PROBE}.constant_prediction:ConstantReader.note", f"{PROBE}.constant_prediction:ConstantReader.receive"),
    ),
    "calls": ("ran, order of the layers", (f"{PROBE}.module_hooks:WatchingHook.__call__",)),
    "hooks": ("(put in place, removed)", (f"{PROBE}.probe:Probe.attach", f"{PROBE}.probe:Probe.detach")),
    "gradients": (
        "grad_norm, param_grad_norm, total_norm, zero_fraction", (f"{PROBE}.parameters:norms_and_nonzero_counts",)
    ),
    "non-finite": ("nonfinite", (f"{PROBE}.parameters:nonfinite_counts",)),
    "parameters": (
        "(lists of them) size, param_size, groups",
        (
            f"{PROBE}.probe:Probe.read", f"{PROBE}.parameters:ParameterReading.__init__",
            f"{PROBE}.parameters:Settings.of", f"{PROBE}.parameters:Groups.add",
        ),
    ),
    "carried over": (
        "carried_over",
        tuple(f"{PROBE}.carried:CarriedGradients.{name}" for name in ("begin", "look", "among")),
    ),
    "clips": (
        "clip, clip_max_norm, total_norm_after",
        (
            *(f"gradwatch.pipeline.clips:Clips.{name}" for name in ("attach", "detach", "compare", "found")),
            f"{PROBE}.parameters:ParameterReading.read_again",
        ),
    ),
    "weights, and copies": (
        "weight_norm, param_weight_norm", (f"{PROBE}.updates:Updates.keep", f"{PROBE}.parameters:l2_norms")
    ),
    "updates": (
        "update_norm, update_to_weight, param_update_norm, param_changed, param_put_back",
        (f"{PROBE}.updates:Updates.measure",),
    ),
    "sums": (
        "(of all columns)",
        (
            f"{PROBE}.probe:Probe.finish", f"{PROBE}.sums:StepSums.__init__", f"{PROBE}.scalars:DeviceScalars.send",
            f"{PROBE}.trace:Trace.drain",
        ),
    ),
    "Snapshot": (
        "(of all columns)",
        (
            f"{PROBE}.sums:StepSums.columns", f"{PROBE}.columns:Assembly.make", f"{PROBE}.updates:Updates.note",
            f"{PROBE}.scalars:Transfer.numbers",
        ),
    ),
    "search for NaN": (
        "origin",
        (
            "gradwatch.callbacks.step_again:StepAgain.__init__", "gradwatch.pipeline.watcher:Watcher.seek_nan",
            "gradwatch.pipeline.origin_search:OriginSearch.note",
        ),
    ),
    "detectors": ("(findings)", ("gradwatch.pipeline.ledger:Ledger.update",)),
    "history": (
        "(kept)", ("gradwatch.pipeline.intake:History.add", "gradwatch.pipeline.kept_columns:KeptColumns.__call__")
    ),
    "record": ("(written)", ("gradwatch.reporting.record:JsonlRecord.snapshot",)),
    "TensorBoard": (
        "(shown)",
        (
            "gradwatch.reporting.tensorboard:TensorBoardReport.snapshot",
            "gradwatch.reporting.block_values:BlockValues.__call__",
        ),
    ),
    "other reports": ("(written)", ("gradwatch.pipeline.reports:Reports.write",)),
    "the callback": (
        "(the rest)",
        (
            *(
                f"gradwatch.callbacks.monitor:GradientMonitor.{name}"
                for name in (
                    "on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
                    "on_train_batch_end",
                )
            ),
            "gradwatch.pipeline.watcher:Watcher.read_again", "gradwatch.pipeline.watcher:Watcher.measure_updates",
        ),
    ),
}  # fmt: skip
WRITER = "TensorBoard"  # the group that the wait for the logger's writer belongs to
EVERY, WARM_UP = 4, 2  # steps from one that is measured to the next, and measured ones that are not counted

Numbers = npt.NDArray[np.float64]


@dataclass
class Laps(Callback):
    """The time of each step, and in it that of each group."""

    watch: Stopwatch
    begun: list[float] = field(default_factory=list)
    laps: list[Lap] = field(default_factory=list)  # the first is of what came before the first step

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        flush: Callable[[], object] = trainer.loggers[0].experiment.flush
        self.watch.timed(WRITER, flush)()
        self.begun.append(time.perf_counter())
        self.laps.append(self.watch.lap())


@dataclass(frozen=True)
class Steps:
    """Some steps of a fit.

    Attributes:
        whole: milliseconds of each.
        seen: group -> those of its functions in each step.
        calls: group -> median number of calls.
    """

    whole: Numbers
    seen: dict[str, Numbers]
    calls: dict[str, float]

    @property
    def together(self) -> Numbers:
        return np.sum([*self.seen.values()], axis=0)


def measure(name: str, count: int) -> tuple[Steps, Steps]:
    """Return ``count`` measured steps, and some more if a detector asks for it; and all other ones."""
    workload, laps = WORKLOADS[name], Laps(Stopwatch())
    functions = {group: targets for group, (_, targets) in READINGS.items()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, laps.watch.on(functions):
        monitor = GradientMonitor(every_n_steps=EVERY, dense_steps=0, summary=False)
        trainer = Trainer(
            accelerator="cpu", max_steps=EVERY * (WARM_UP + count) + 1, logger=TensorBoardLogger(folder),
            callbacks=[laps, monitor],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with redirect_stdout(StringIO()):
            trainer.fit(workload.module(), workload.loader())
    measured = {snapshot.step for snapshot in monitor.history}
    counted = range(EVERY * WARM_UP, len(laps.begun) - 1)
    return (
        steps_of(laps, [step for step in counted if step in measured]),
        steps_of(laps, [step for step in counted if step not in measured]),
    )


def steps_of(laps: Laps, places: Sequence[int]) -> Steps:
    here = [laps.laps[place + 1] for place in places]
    seen = {group: 1e3 * np.array([lap.seconds.get(group, 0.0) for lap in here]) for group in READINGS}
    calls = {group: float(np.median([lap.calls[group] for lap in here])) for group in READINGS}
    return Steps(1e3 * np.diff(laps.begun)[list(places)], seen, calls)


def rows_of(workload: str, measured: Steps, others: Steps) -> list[Row]:
    """The rows of one workload: the groups from the dearest on, and the sums."""
    bare = float(np.median(others.whole - others.together))

    def row(group: str, columns: str, times: Numbers, idle: Numbers, calls: float | None = None) -> Row:
        low, middle = np.quantile(times, (0.25, 0.5))
        return {
            "workload": workload, "read": group, "columns": columns, "ms": f"{middle:.3f}",
            "lower quartile": f"{low:.3f}", "of a bare step": f"{middle / bare:.2%}",
            "calls": "" if calls is None else f"{calls:g}", "ms, unmeasured": f"{np.median(idle):.3f}",
        }  # fmt: skip

    groups = sorted(READINGS, key=lambda group: -float(np.median(measured.seen[group])))
    return [
        *(row(g, READINGS[g][0], measured.seen[g], others.seen[g], measured.calls[g]) for g in groups),
        row("all of these", "", measured.together, others.together, sum(measured.calls.values())),
        row("rest of the step", "", measured.whole - measured.together, others.whole - others.together),
        row("whole step", "", measured.whole, others.whole),
    ]


def main(workloads: Sequence[str] = MAIN, count: int = 12, csv_file: Path | None = None) -> None:
    """Measure and print the table.

    Args:
        workloads: some of those of workloads.py.
        count: number of measured steps, after two that are not counted; every fourth step is measured.
        csv_file: also write the table here.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = Console(file=sys.stderr)
    rows = [row for name in track(workloads, console=console) for row in rows_of(name, *measure(name, count))]
    publish(rows, csv_file, group="workload")


if __name__ == "__main__":
    auto_cli(main)
