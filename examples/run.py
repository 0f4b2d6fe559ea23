"""The command line, the Trainer and the final test of all examples."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from gradwatch import GradientMonitor
from gradwatch.examples.baseline import Baseline
from gradwatch.examples.data import ImageData, Name

FAST_EPOCHS, FAST_BATCHES = 10, 3


def main(model_class: type[Baseline], args: list[str] | None = None) -> float:
    """Run an example from the command line; returns the test accuracy.

    Args:
        model_class: the example; its arguments are options too, ``--model.<name>``.
        args: the command line; default: the program's own.
    """
    parser = make_parser(f"Train {model_class.__name__} under gradwatch's monitor.")
    parser.add_argument("--log-dir", type=Path, default=Path("lightning_logs"), help="where TensorBoard's logs go")
    parser.add_class_arguments(model_class, "model", skip={"in_features", "num_classes"})
    options = parser.parse_args(args)
    data = load_data(parser, options)
    seed_everything(options.seed)
    model = model_class(data.in_features, data.num_classes, **options.model)
    accuracy = train(model, data, max_epochs=options.max_epochs, log_dir=options.log_dir, fast=options.fast)
    print(f"test accuracy: {accuracy:.3f}\nsee the curves: tensorboard --logdir {options.log_dir}")
    return accuracy


def make_parser(description: str, datasets: Any = Name) -> ArgumentParser:
    """Return the parser with the options of all examples.

    Args:
        description: purpose of the program.
        datasets: Literal of the data sets; the first is the default.

    Example:
        >>> make_parser("An example.").parse_args(["--max-epochs", "5"]).max_epochs
        5
    """
    parser = ArgumentParser(description=description)
    parser.add_argument("--dataset", type=datasets, default=get_args(datasets)[0], help="what to learn")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="folder of a data set's files")
    parser.add_argument("--max-epochs", type=PositiveInt, default=100, help="how long to train")
    parser.add_argument("--batch-size", type=PositiveInt, default=512, help="samples a step")
    parser.add_argument("--seed", type=int, default=42, help="of the weights, the split and the shuffling")
    parser.add_argument("--fast", action="store_true", help=f"at most {FAST_EPOCHS} epochs of {FAST_BATCHES} batches")
    return parser


def load_data(parser: ArgumentParser, options: Namespace) -> ImageData:
    """Return the chosen data; exit with a message if they can't be loaded."""
    try:
        data = ImageData(options.dataset, options.data_dir, options.batch_size, options.seed)
        data.setup()
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    return data


def train(model: Baseline, data: ImageData, *, max_epochs: int, log_dir: Path, fast: bool = False) -> float:
    """Fit under the monitor, then test; returns the test accuracy."""
    logger = TensorBoardLogger(log_dir, name=type(model).__name__.lower())
    trainer = make_trainer(model, max_epochs, fast, logger=logger, callbacks=[GradientMonitor()])
    trainer.fit(model, data)
    return trainer.test(model, data, verbose=False)[0]["test_accuracy"]


def make_trainer(model: Baseline, max_epochs: int, fast: bool, **options: Any) -> Trainer:
    """Return the Trainer of all runs; the model may override its ``options``."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # with data in memory one process is quickest
    return Trainer(
        max_epochs=min(max_epochs, FAST_EPOCHS) if fast else max_epochs,
        limit_train_batches=FAST_BATCHES if fast else None,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        **{**options, **model.configure_trainer()},
    )
