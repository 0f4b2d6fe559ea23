"""Measure how often the operation that makes NaN, and its line, are named first.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m nan.measure

It takes two minutes. Each program is fitted by a Trainer with a default GradientMonitor, turns NaN at step 33, which is
not measured, and counts where the first cause is an unguarded operation whose evidence has the operation, the user's
function and the step. A twin with the guard counts as accused where anything is found.
"""

from __future__ import annotations

import logging
import tempfile
import warnings

import torch
from detection.intervals import wilson
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer
from nan.programs import BAD, PROGRAMS, Program, data
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradwatch import GradientMonitor


class Fitted(LightningModule):
    """Trains a small network with a program's loss."""

    def __init__(self, program: Program, safe: bool) -> None:
        super().__init__()
        self.program, self.safe = program, safe
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return self.program.rule(self.net, *batch, self.safe)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def watched(program: Program, safe: bool, seed: int = 0) -> GradientMonitor:
    """Return the monitor of one fit."""
    torch.manual_seed(seed)
    module, monitor = Fitted(program, safe), GradientMonitor(summary=False, record_path=False)
    x, y = data(program.extreme, seed)
    feed = DataLoader([(x[i], y[i]) for i in range(len(x))], batch_size=None)
    with tempfile.TemporaryDirectory() as folder:
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[monitor], enable_model_summary=False,
            default_root_dir=folder, **quiet,
        )  # fmt: skip
        trainer.fit(module, feed)
    return monitor


def is_named(program: Program, monitor: GradientMonitor) -> bool:
    """Return True if operation, function and step are named first."""
    first = next(iter(monitor.diagnosis()), None)
    if first is None or first.cause != "unguarded operation":
        return False
    names_operation = any(f"`{operation}`" in first.evidence for operation in program.operations)
    return names_operation and f"in {program.rule.__name__}" in first.evidence and f"step {BAD}" in first.evidence


def main(programs: list[str] | None = None) -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    chosen = {name: PROGRAMS[name] for name in programs or PROGRAMS}
    named, accused = 0, 0
    for name, one in chosen.items():
        monitor, twin = watched(one, False), watched(one, True)
        hit = is_named(one, monitor)
        named, accused = named + hit, accused + bool(twin.findings or twin.diagnosis())
        if not hit or twin.findings or twin.diagnosis():
            said = [f"{d.cause}: {d.evidence}" for d in monitor.diagnosis()][:1]
            of_twin = [*(f.message for f in twin.findings), *map(str, twin.diagnosis())]
            print(f"{name}: {said or 'nothing'}; twin: {of_twin}")
    for title, count in (("operation and line named first", named), ("twins accused", accused)):
        low, high = wilson(count, len(chosen))
        print(f"{title}: {count} of {len(chosen)} ({low:.0%} to {high:.0%})")


if __name__ == "__main__":
    auto_cli(main)
