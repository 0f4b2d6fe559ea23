"""``gradwatch demo``: the vanishing case and its remedied twin, side by side."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gradwatch import Finding, GradientMonitor
from gradwatch.commands.target import positive
from gradwatch.commands.words import as_typed, install_extra
from gradwatch.examples.baseline import Baseline
from gradwatch.examples.data import ImageData
from gradwatch.examples.init_he import He
from gradwatch.reporting.terminal import SideBySide, Summary
from gradwatch.short_runs.sandbox import isolated

_RUNS: dict[str, type[LightningModule]] = {"Sigmoid, default init": Baseline, "ReLU, He init": He}
_SEED = 42


class _Advance(Callback):
    """Moves the progress bar by one for each training batch."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def on_train_batch_end(self, *_: object) -> None:
        self._progress.advance(self._task)


def train_twins(data_dir: Path | None, max_epochs: int | None, log_dir: Path) -> None:
    """Train both networks, print both tables, and say where to see more.

    Raises:
        FileNotFoundError: when ``data_dir`` has no Fashion-MNIST.
    """
    console = Console()
    data = ImageData("digits") if data_dir is None else ImageData("fashion-mnist", data_dir)
    data.setup()
    epochs = max_epochs or (100 if data_dir is None else 3)
    summaries = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with isolated(), Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        steps = epochs * len(data.train_dataloader())
        tasks = {name: progress.add_task(name, total=steps) for name in _RUNS}
        for name, task in tasks.items():
            monitor, accuracy = _train(name, data, epochs, log_dir, progress, task)
            title = f"{name}: test accuracy {accuracy:.2f}"
            summaries.append(
                Summary(monitor.history[-1], monitor.findings, monitor.diagnosis(), title, history=monitor.history)
            )
    console.print(SideBySide(*summaries))
    board = as_typed("tensorboard", "--logdir", str(log_dir), module="tensorboard.main")
    console.print(f"\nThe same over time, in TensorBoard: [bold]{escape(board)}[/bold]", soft_wrap=True)
    console.print("Look at Custom Scalars (all layers in one chart), Images (gradient flow) and Text (findings).")


def _train(
    name: str, data: ImageData, epochs: int, log_dir: Path, progress: Progress, task: TaskID
) -> tuple[GradientMonitor, float]:
    def announce(finding: Finding) -> None:
        progress.console.print(f"[yellow]step {finding.step}, {name}:[/yellow] {escape(finding.message)}")

    seed_everything(_SEED, verbose=False)
    model = _RUNS[name](data.in_features, data.num_classes)
    monitor = GradientMonitor(every_n_steps=10, on_finding=announce, summary=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=TensorBoardLogger(log_dir, name=name.lower().replace(", ", "-").replace(" ", "-")),
        callbacks=[monitor, _Advance(progress, task)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return monitor, float(trainer.test(model, datamodule=data, verbose=False)[0]["test_accuracy"])


def add(commands: Any) -> None:
    """Declare the command and its options."""
    what = "Train a network whose gradient vanishes, and its remedied twin, and show what gradwatch sees in both."
    parser = commands.add_parser("demo", help="see it work: train two networks side by side", description=what)
    parser.add_argument("--data-dir", type=Path, help="folder of Fashion-MNIST; without it digits are learnt")
    parser.add_argument("--max-epochs", type=positive, help="default: 100 on digits, 3 on Fashion-MNIST")
    log_dir = Path("gradwatch-demo")
    parser.add_argument("--log-dir", type=Path, default=log_dir, help="for TensorBoard (default: %(default)s)")
    parser.set_defaults(run=run, takes_more=False)


def run(options: argparse.Namespace, _: list[str]) -> int:
    """Train both; end the program with a sentence where the data is missing."""
    if options.data_dir is None and find_spec("sklearn") is None:
        sys.exit(f"gradwatch demo: the digits need scikit-learn, which is {install_extra('examples')}")
    try:
        train_twins(options.data_dir, options.max_epochs, options.log_dir)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"gradwatch demo: {error}")
    return 0
