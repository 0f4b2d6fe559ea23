"""LightningCLI for the examples: a YAML file chooses, trains and tests a remedy.

python examples/cli.py fit --config examples/remedy.yaml
"""

from __future__ import annotations

import warnings

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI


class ExamplesCLI(LightningCLI):
    """Lightning's command line; the model gets its number of inputs from the data."""

    def add_arguments_to_parser(self, parser: ArgumentParser) -> None:
        """Link the settings that must agree."""
        parser.link_arguments("data.in_features", "model.init_args.in_features", apply_on="instantiate")


def main(args: list[str] | None = None) -> LightningCLI:
    """Run a subcommand (fit, validate, test); ``args`` default to the program's own."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # with data in memory one process is quickest
    return ExamplesCLI(args=args, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
