"""Configs as LightningCLI itself saves them beside a run, from real runs: each is one that a check takes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from gradwatch.cli import main

CLASSES = ("--model", "smoke_project.Net", "--data", "smoke_project.Data")
QUIET = (
    "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)  # fmt: skip
OTHERS = (
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=.",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=train_loss",
)  # fmt: skip


def fixed(project: Any) -> None:
    LightningCLI(project.Net, project.Data, args=["fit", *QUIET, *OTHERS, "--data.batch_size=32"])


def subclasses(project: Any) -> None:
    how = {"subclass_mode_model": True, "subclass_mode_data": True}
    LightningCLI(project.Net, project.Data, **how, args=["fit", *CLASSES, *QUIET, *OTHERS])


def any_class(project: Any) -> None:
    LightningCLI(args=["fit", *CLASSES, *QUIET])


def without_a_subcommand(project: Any) -> None:
    cli = LightningCLI(project.Net, project.Data, run=False, args=list(QUIET))
    cli.trainer.fit(cli.model, cli.datamodule)


def own_cli(project: Any) -> None:
    given = ["fit", *QUIET, *OTHERS, "--data.batch_size=8", "--lr_scheduler.gamma=0.9"]
    project.OptimizerCLI(project.Net, project.Data, args=given)


def own_cli_of_its_classes(project: Any) -> None:
    project.FixedCLI(args=["fit", *QUIET])


def only_the_model_is_fixed(project: Any) -> None:
    LightningCLI(project.Net, args=["fit", "--data=smoke_project.Data", *QUIET])


def without_data(project: Any) -> None:
    LightningCLI(project.WithLoader, args=["fit", *QUIET])


Save = Callable[[Any], None]
NEEDED: dict[Save, tuple[str, ...]] = {
    fixed: CLASSES,
    subclasses: (),
    any_class: (),
    without_a_subcommand: CLASSES,
    own_cli: (*CLASSES, "--cli", "smoke_project.OptimizerCLI"),
    own_cli_of_its_classes: (*CLASSES, "--cli", "smoke_project.FixedCLI"),
    only_the_model_is_fixed: CLASSES[:2],
    without_data: ("--model", "smoke_project.WithLoader"),
}


@pytest.fixture
def saved(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Save], str]:
    """The config that a run saves, by the function that makes the run."""
    monkeypatch.syspath_prepend(str(here))
    import smoke_project

    def save(make: Save) -> str:
        monkeypatch.chdir(tmp_path)  # where the run writes its checkpoints and logs
        make(smoke_project)
        monkeypatch.chdir(here)
        (found,) = tmp_path.rglob("config.yaml")
        return str(found)

    return save


def check(*args: str) -> int:
    try:
        main(["check", "--steps", "3", *args])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", NEEDED, ids=lambda make: make.__name__)
def test_a_saved_config_is_taken(saved: Callable[[Save], str], make: Save, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--config", saved(make), *NEEDED[make]) == 0, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [fixed, without_a_subcommand, only_the_model_is_fixed, without_data])
def test_without_its_classes_the_command_to_type_is_told_and_works(
    saved: Callable[[Save], str], make: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    config = saved(make)
    assert check("--config", config) == 2
    err = capsys.readouterr().err
    assert "the config does not name the class of the model" in err
    typed = shlex.split(err.strip().rpartition("type: ")[2])
    args = typed[typed.index("check") + 1 :]
    assert args[:4] == ["--config", config, "--model", "smoke_project.Net"]
    if make is not without_data:  # the call in the project is of Net, which has no loader
        assert check(*args) == 0


@pytest.mark.filterwarnings("ignore")
def test_options_of_a_cli_of_the_projects_own_are_told_to_be_so(
    saved: Callable[[Save], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("--config", saved(own_cli), *CLASSES) == 2
    assert "Option 'lr' is not accepted" in capsys.readouterr().err


def test_a_config_for_all_subcommands(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "all.yaml"
    path.write_text("fit:\n  model: {lr: 0.01}\n  data: {batch_size: 8}\n")
    assert check("--config", str(path), *CLASSES) == 0
    path.write_text("- model\n")
    assert check("--config", str(path), *CLASSES) == 2
    assert "holds a list; expected a config of LightningCLI" in capsys.readouterr().err


def test_a_project_without_a_call_gets_names_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {lr: 0.1}\ndata: {batch_size: 8}\n")
    assert check("--config", "config.yaml") == 2
    assert "--config config.yaml --model package.Model --data package.Data" in capsys.readouterr().err
