"""The calls of LightningCLI in a project's files: which classes they name, as these are imported."""

from __future__ import annotations

from pathlib import Path

from gradwatch.commands.cli_calls import CliCall, cli_calls


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_names_are_followed_to_where_they_come_from(tmp_path: Path) -> None:
    write(
        tmp_path,
        main="from pkg.nets import Net as N\nimport pkg.data as d\nLightningCLI(N, d.Data)\n",
        src__app__train="from .nets import Net\nfrom ..other import Data\nclass CLI(LightningCLI): ...\n"
        "CLI(datamodule_class=Data, model_class=Net)\n",
        broken="LightningCLI(",
    )
    first, second = cli_calls(tmp_path)
    assert first == CliCall("pkg.nets.Net", "pkg.data.Data", "", "main.py:3")
    assert second == CliCall("app.nets.Net", "other.Data", "app.train.CLI", "src/app/train.py:4")


def test_environments_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, env__lib__main="LightningCLI(A)", site="x = 1", a__b="LightningCLI()")
    (tmp_path / "env" / "pyvenv.cfg").touch()
    write(tmp_path / ".hidden", main="LightningCLI(B)")
    assert [(call.model, call.place) for call in cli_calls(tmp_path)] == [("", "a/b.py:1")]
