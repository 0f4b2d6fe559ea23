"""What watching costs: the time of a step as a ratio to a bare Trainer with the same logger.

    python tests/benchmarks/overhead.py --rounds 7

All variants run in one process, in turn within each round; a round's figure is the mean time of a step after the dense
first ones, and its ratio is to the bare run of the same round. The table gives the median and the range over the
rounds. What comes before the first and after the last step (set-up, pictures, summary) is not in it.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import grad_norm
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from workloads import WORKLOADS, Workload

from gradwatch import GradientMonitor

DENSE = 20


class Timer(Callback):
    """Mean seconds of a step, from the end of the dense first steps to the end of the fit."""

    seconds = float("nan")

    def __init__(self, skip: int) -> None:
        self.skip = skip

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.skip:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:
            self.seconds = (time.perf_counter() - self.started) / (trainer.max_steps - self.skip)


class Recipe(Callback):
    """Lightning's documented recipe: log_dict of grad_norm at every step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class ForeachNorm(Callback):
    """The floor: one fused norm of all gradients, read once."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        torch.stack(torch._foreach_norm([p.grad for p in pl_module.parameters() if p.grad is not None])).tolist()


class FullHooks(Callback):
    """Hand-written full backward hooks on every leaf module, each with an ``.item()``."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.norms: dict[int, float] = {}
        for number, module in enumerate(m for m in pl_module.modules() if not list(m.children())):
            module.register_full_backward_hook(self._hook(number))

    def _hook(self, number: int) -> Callable[[nn.Module, object, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, grad_input: object, grad_output: tuple[torch.Tensor, ...]) -> None:
            self.norms[number] = grad_output[0].norm().item()

        return hook


def monitor(every: int) -> Callable[[], Callback]:
    return lambda: GradientMonitor(every_n_steps=every, dense_steps=DENSE, summary=False)


VARIANTS: dict[str, Callable[[], Callback | None]] = {
    "bare": lambda: None,
    "foreach_norm": ForeachNorm,
    "gradwatch every 1": monitor(1),
    "gradwatch every 10": monitor(10),
    "gradwatch every 50": monitor(50),
    "lightning recipe": Recipe,
    "full backward hooks": FullHooks,
}


def seconds_a_step(workload: Workload, variant: str, steps: int, folder: str) -> float:
    """Mean time of a step; NaN where the variant can't run."""
    callback = VARIANTS[variant]()
    timer = Timer(skip=DENSE + 1)
    trainer = Trainer(
        accelerator="cpu", max_steps=DENSE + 1 + steps, logger=TensorBoardLogger(folder),
        callbacks=[timer, *filter(None, [callback])],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    try:
        trainer.fit(workload.module(), workload.loader())
    except RuntimeError as error:
        print(f"{variant} cannot run: {str(error).splitlines()[0]}")
    return timer.seconds


def main(
    workloads: list[str] | None = None, variants: list[str] | None = None, rounds: int = 5, csv_file: Path | None = None
) -> None:
    """Measure and print the table.

    Args:
        workloads: some of mlp-64, resnet-18, transformer-6, rnn-cell-50; all by default.
        variants: some of the variants, beside the bare run; all by default.
        rounds: how often each is run, after one round that is not counted.
        csv_file: where the table goes too.
    """
    warnings.simplefilter("ignore")
    chosen = ["bare", *(variants or [name for name in VARIANTS if name != "bare"])]
    rows: list[dict[str, object]] = []
    for name in workloads or WORKLOADS:
        with tempfile.TemporaryDirectory() as folder:
            # At every 50 a whole number of cycles has to be timed.
            steps = max(WORKLOADS[name].steps, 50 if "gradwatch every 50" in chosen else 0)
            times = [
                {variant: seconds_a_step(WORKLOADS[name], variant, steps, folder) for variant in chosen}
                for _ in track(range(rounds + 1), description=name, console=Console(stderr=True))
            ][1:]
        rows += [row(name, variant, times) for variant in chosen]
    show(rows)
    if csv_file:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def row(workload: str, variant: str, times: list[dict[str, float]]) -> dict[str, object]:
    ratios = sorted(round_[variant] / round_["bare"] for round_ in times)
    return {
        "workload": workload, "variant": variant,
        "ms a step": round(1e3 * statistics.median(round_[variant] for round_ in times), 2),
        "ratio": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3), "highest": round(ratios[-1], 3),
    }  # fmt: skip


def show(rows: list[dict[str, object]]) -> None:
    table = Table(*rows[0], title=f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for cells in rows:
        table.add_row(*map(str, cells.values()), end_section=cells["variant"] == list(VARIANTS)[-1])
    Console().print(table)


if __name__ == "__main__":
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    auto_cli(main)
