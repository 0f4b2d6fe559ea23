"""The command line, the training and the final test of the examples on sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from gradwatch import GradientMonitor
from gradwatch.examples.adding import AddingData
from gradwatch.examples.recurrent import Recurrent
from gradwatch.examples.run import make_parser, make_trainer
from gradwatch.examples.sequences import SequenceData
from gradwatch.examples.text import TextData

Name = Literal["adding", "text"]
Run = tuple[dict[str, float], GradientMonitor]


def main(model_class: type[Recurrent], args: list[str] | None = None) -> Run:
    """Run an example from the command line.

    Args:
        model_class: the example; its arguments are options too, ``--model.<name>``.
        args: the command line; default: the program's own.

    Returns:
        The test's ``test_loss`` and ``test_accuracy``, and the monitor with its history.
    """
    parser = make_sequence_parser(f"Train {model_class.__name__} under gradwatch's monitor.", model_class)
    options = parser.parse_args(args)
    results, monitor = train(model_class, load_sequences(parser, options), options)
    print(f"test loss: {results['test_loss']:.4g}, accuracy: {results['test_accuracy']:.3f}")
    print(f"see the curves: tensorboard --logdir {options.log_dir}")
    return results, monitor


def make_sequence_parser(description: str, model_class: type[Recurrent]) -> ArgumentParser:
    """Return the parser with the options of all examples, of sequences and of the model.

    Example:
        >>> options = make_sequence_parser("An example.", Recurrent).parse_args(["--model.width", "32"])
        >>> options.dataset, options.length, options.model.width
        ('adding', 100, 32)
    """
    parser = make_parser(description, Name)
    parser.set_defaults({"max_epochs": 4, "batch_size": 64})
    parser.add_argument("--length", type=int, default=100, help="time steps of a sequence")
    parser.add_argument("--log-dir", type=Path, default=Path("lightning_logs"), help="where TensorBoard's logs go")
    parser.add_class_arguments(model_class, "model", skip={"in_features", "num_classes"})
    return parser


def load_sequences(parser: ArgumentParser, options: Namespace) -> SequenceData:
    """Return the chosen data; exit with a message if they can't be loaded."""
    settings = (options.length, options.batch_size, options.seed)
    try:
        data = AddingData(*settings) if options.dataset == "adding" else TextData(options.data_dir, *settings)
        data.setup()
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    return data


def train(make_model: Callable[..., Recurrent], data: SequenceData, options: Namespace) -> Run:
    """Fit a new model under the monitor, then test it."""
    seed_everything(options.seed)
    model = make_model(data.in_features, data.num_classes, **options.model)
    logger = TensorBoardLogger(options.log_dir, name=type(model).__name__.lower())
    monitor = GradientMonitor()
    trainer = make_trainer(model, options.max_epochs, options.fast, logger=logger, callbacks=[monitor])
    trainer.fit(model, data)
    return trainer.test(model, data, verbose=False)[0], monitor
