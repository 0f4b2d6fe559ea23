"""The workflows: which versions they test, and that a release is built, tested and published without a token."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEWEST = "/dev/null"  # constrains nothing


def workflow(name: str) -> dict[str, Any]:
    """A workflow as texts: YAML would read its key `on` as true."""
    loaded: dict[str, Any] = yaml.load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"), yaml.BaseLoader)
    return loaded


WORKFLOWS = {name: workflow(name) for name in ("ci.yml", "release.yml")}
MATRIX = WORKFLOWS["ci.yml"]["jobs"]["ci"]["strategy"]["matrix"]["include"]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {package: Version(version) for package, version in pairs}


def test_every_supported_python_is_tested() -> None:
    tested = {row["python"] for row in MATRIX}
    named = {found[1] for line in PROJECT["classifiers"] if (found := re.search(r"Python :: (3\.\d+)$", line))}
    assert tested == named
    assert PROJECT["requires-python"] == f">={min(named, key=Version)}"


def test_the_oldest_and_the_newest_libraries_are_tested() -> None:
    by_constraints = {row["constraints"]: row["python"] for row in MATRIX}
    assert by_constraints["constraints-oldest.txt"] == min((row["python"] for row in MATRIX), key=Version)
    assert by_constraints[NEWEST] == max((row["python"] for row in MATRIX), key=Version)
    assert all((ROOT / name).is_file() for name in by_constraints if name != NEWEST)
    assert any(row["steps"] == "all" for row in MATRIX)


def test_the_oldest_libraries_are_those_that_are_required() -> None:
    required = {found.name: found for found in map(Requirement, PROJECT["dependencies"])}
    oldest = pins("constraints-oldest.txt")
    for name in ("torch", "lightning", "torchmetrics"):
        least = next(each for each in required[name].specifier if each.operator == ">=")
        assert oldest[name].release[:2] == Version(least.version).release[:2]
        assert oldest[name] in required[name].specifier
    assert all(pins("constraints.txt")[name] > version for name, version in oldest.items())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_have_a_version_and_jobs_a_limit(name: str) -> None:
    jobs = WORKFLOWS[name]["jobs"].values()
    steps = [step for job in jobs for step in job.get("steps", [])]
    assert all(re.search(r"@(v\d+|release/v\d+)$", step["uses"]) for step in steps if "uses" in step)
    assert all("timeout-minutes" in job for job in jobs if "uses" not in job)
    assert all(("run" in step) != ("uses" in step) for step in steps)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    own = {key: job["permissions"] for key, job in WORKFLOWS[name]["jobs"].items() if "permissions" in job}
    assert own == ({"publish": {"id-token": "write"}} if name == "release.yml" else {})


def test_a_release_is_tested_built_and_published_without_a_token() -> None:
    release = WORKFLOWS["release.yml"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["ci"] == {"uses": "./.github/workflows/ci.yml"}
    assert "workflow_call" in WORKFLOWS["ci.yml"]["on"]
    publish = release["jobs"]["publish"]
    assert publish["needs"] == ["ci", "build"]
    assert publish["environment"]["name"] == "pypi"
    assert publish["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    up, down = (step["with"] for job in ("build", "publish") for step in release["jobs"][job]["steps"] if "dist" in
                str(step.get("with", "")))  # fmt: skip
    assert (up["name"], up["path"]) == (down["name"], down["path"])
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")


def test_ci_runs_what_a_change_is_judged_by() -> None:
    steps = WORKFLOWS["ci.yml"]["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run ${{ matrix.steps }}"]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "${CONSTRAINTS:-constraints.txt}" in script
    assert "-m slow tests/test_distribution.py" in script
    assert "mkdocs build --strict" in script
