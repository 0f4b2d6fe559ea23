"""LightningCLI runs a remedy from a YAML file."""

from pathlib import Path

from gradwatch.examples.cli import main
from gradwatch.examples.init_he import He
from gradwatch.reporting.record import read_record

CONFIG = Path(__file__).parents[2] / "examples" / "remedy.yaml"


def test_a_yaml_file_trains_a_remedy_under_the_monitor(tmp_path: Path) -> None:
    changes = ["--trainer.max_epochs", "2", "--trainer.logger.init_args.save_dir", str(tmp_path)]
    cli = main(["fit", "--config", str(CONFIG), *changes])
    assert isinstance(cli.model, He)
    snapshots, _ = read_record(next(tmp_path.rglob("gradwatch.jsonl")))
    assert len(snapshots) == 6
    assert list(tmp_path.rglob("config.yaml"))
