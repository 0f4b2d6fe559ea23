"""docs/ci.md: each of its commands runs in a project with the names of the page, and its files are what they claim."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from gradwatch.cli import main
from gradwatch.commands.baseline import read_baseline
from gradwatch.commands.changed import listed_targets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
CONFIG = "model: {class_path: my_package.Model}\ndata: {class_path: my_package.Data}\n"
SAVED = "model: {activation: relu}\ndata: {batch_size: 32}\noptimizer: null\nckpt_path: null\n"
OWN = """

class Model(Net):
    pass


class MyCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.batch_size", "model.features")
"""


@pytest.fixture(scope="module")
def folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    source = (project / "smoke_project.py").read_text()
    start, main_part = source.split('\nif __name__ == "__main__":')
    (folder / "my_package.py").write_text(f'{start}{OWN}\nif __name__ == "__main__":{main_part}')
    for name, text in {"config": CONFIG, "saved": SAVED, "own": "data: {batch_size: 8}\nmodel: {lr: 0.05}\n"}.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "pyproject.toml").write_text(blocks("toml")[0])
    (folder / "gradwatch-baseline.json").write_text(blocks("json")[0])
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    program, *args = shlex.split(command)
    assert program == "gradwatch"
    main(args)


def test_the_files_of_the_page_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = folder / "example.json"
    path.write_text(blocks("json")[0])
    assert [entry.rule for entry in read_baseline(path)] == ["GW101"]
    assert [target.name for target in listed_targets()] == ["config.yaml", "my_package.Model"]


def test_the_workflows_use_what_is_there() -> None:
    github, gitlab, hooks = map(yaml.safe_load, blocks("yaml"))
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    (step,) = [step for step in github["jobs"]["check"]["steps"] if step.get("uses") == "./tools/gradwatch"]
    assert set(step["with"]) <= set(action["inputs"])
    documented = re.findall(
        r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.split("| input |")[1], re.MULTILINE))
    )
    assert set(documented) >= set(action["inputs"])
    (written,) = [line for line in gitlab["gradients"]["script"] if line.startswith("gradwatch")]
    assert gitlab["gradients"]["artifacts"]["reports"]["junit"] in written
    hook = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert [each["id"] for each in hooks["repos"][0]["hooks"]] == [each["id"] for each in hook]


def test_the_json_has_the_keys_of_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    main(["check", "--config", "config.yaml", "--steps", "2", "--format", "json"])
    row = next(line for line in PAGE.splitlines() if line.startswith("| `json`"))
    assert re.findall(r"`(\w+)`", row)[1:] == list(json.loads(capsys.readouterr().out))
