"""gradwatch check --changed: which targets of pyproject.toml are checked, and the hook of pre-commit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradwatch.cli import main
from gradwatch.commands.changed import files_imported_by, targets_of
from gradwatch.commands.target import UsageError

ROOT = Path(__file__).parents[2]
TABLE = """
[[tool.gradwatch.check]]
model = "nets.deep.Net"
data = "nets.data.Data"
files = ["tables/*.csv"]

[[tool.gradwatch.check]]
config = "other.yaml"
steps = 3
allow = ["GW101"]
args = ["--model.init_args.lr", "0.1"]
"""
FILES = {
    "pyproject.toml": TABLE,
    "nets/__init__.py": "",
    "nets/deep.py": "from . import blocks\nimport torch\n",
    "nets/blocks/__init__.py": "from .relu import Block\n",
    "nets/blocks/relu.py": "def f():\n    from ..tools import x\n",
    "nets/tools.py": "import nets.deep\n",
    "nets/data.py": "",
    "nets/unused.py": "import nets.deep\n",
    "src/lib/net.py": "from lib.parts import A\n",
    "src/lib/parts.py": "",
    "other.yaml": "model: {class_path: lib.net.Net, init_args: {inner: {class_path: nets.unused.Inner}}}\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("nets/data.py", ["nets.deep.Net"]),
        ("nets/blocks/relu.py", ["nets.deep.Net", "other.yaml"]),  # the second by nets.unused, which imports nets.deep
        ("nets/tools.py", ["nets.deep.Net", "other.yaml"]),  # imported in a function, relative to the package above
        ("nets/unused.py", ["other.yaml"]),
        ("src/lib/parts.py", ["other.yaml"]),
        ("other.yaml", ["other.yaml"]),
        ("tables/a.csv", ["nets.deep.Net"]),
        ("README.md", []),
        ("pyproject.toml", ["nets.deep.Net", "other.yaml"]),
    ],
)
def test_a_file_belongs_to_the_targets_that_import_it(folder: Path, changed: str, expected: list[str]) -> None:
    assert [target.name for target in targets_of([changed])] == expected
    assert [target.name for target in targets_of([str(folder / changed)])] == expected


def test_packages_on_the_way_are_imported_too(folder: Path) -> None:
    found = {path.relative_to(folder).as_posix() for path in files_imported_by(["nets.data.Data"])}
    assert found == {"nets/__init__.py", "nets/data.py"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "there is no pyproject.toml"),
        ("[tool.other]", r"lists nothing to check; expected, once for each model:\n\n\[\[tool.gradwatch.check\]\]"),
        ("[tool.gradwatch\n", "can't be read"),
        ("[tool.gradwatch]\ncheck = [1]", "number 1 of pyproject.toml is a int; expected a table"),
        ("[[tool.gradwatch.check]]\nstep = 3", "has 'step'; did you mean steps"),
        ("[[tool.gradwatch.check]]\nsteps = 3", "names nothing to train; expected config or model"),
        ('[[tool.gradwatch.check]]\nmodel = "a.B"\nsteps = 0', "steps = 0; expected a whole number of at least 1"),
        ('[[tool.gradwatch.check]]\nmodel = "a.B"\nallow = 3', "allow = 3; expected a text or a list of texts"),
    ],
)
def test_a_wrong_table_is_told(folder: Path, text: str | None, expected: str) -> None:
    Path("pyproject.toml").unlink()
    if text is not None:
        Path("pyproject.toml").write_text(text)
    with pytest.raises(UsageError, match=expected):
        targets_of(["a.py"])


@pytest.mark.parametrize("args", [("--model", "a.B"), ("--format", "sarif"), ("--output", "x.sarif")])
def test_what_is_for_one_target_does_not_go_with_it(
    folder: Path, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", *args, "--changed", "a.py"])
    assert "takes its targets from pyproject.toml" in capsys.readouterr().err


# Another name than that of the project in other tests, whose module is loaded already.
HOOKED = """
[[tool.gradwatch.check]]
model = "hooked_project.Net"
data = "hooked_project.Data"
args = ["--model.init_args.activation=sigmoid"]

[[tool.gradwatch.check]]
model = "another.Other"
data = "hooked_project.make_loader"
steps = 2
"""
OTHER = "from hooked_project import WithLoader\n\n\nclass Other(WithLoader):\n    pass\n"


@pytest.fixture
def repository(project: Path, tmp_path: Path) -> Path:
    """A git repository with two models, the first of them sick."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(HOOKED)
    (folder / "hooked_project.py").write_text((project / "smoke_project.py").read_text())
    (folder / "another.py").write_text(OTHER)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")
    return folder


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *args], cwd=folder, text=True, capture_output=True, check=True).stdout


def entry() -> list[str]:
    """The hook's command line, without the program."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *args = hook["entry"].split()
    assert program == "gradwatch"
    return args


def test_the_hook_checks_what_the_staged_files_belong_to(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    (repository / "another.py").write_text(OTHER + "\n# a change\n")
    git(repository, "add", ".")
    main([*entry(), *git(repository, "diff", "--cached", "--name-only").split()])
    out, err = capsys.readouterr()
    assert err == ""
    assert "gradwatch check: another.Other" in out
    assert "hooked_project.Net" not in out
    with pytest.raises(SystemExit, match="1"):
        main([*entry(), "hooked_project.py"])  # which both models import
    out = capsys.readouterr().out
    assert "GW101 saturating activation" in out
    assert "no fault found: Other, 2 steps" in out
    assert not (repository / "checkpoints").exists()
    main(["check", "--allow", "GW101", *entry()[1:], "hooked_project.py"])  # what both allow is allowed
    assert "saturating" not in capsys.readouterr().out
    (repository / "pyproject.toml").write_text(HOOKED.replace("hooked_project.Data", "hooked_project.Nothing"))
    with pytest.raises(SystemExit, match="2"):
        main([*entry(), "pyproject.toml"])
    out, err = capsys.readouterr()
    assert "has no 'Nothing'" in err
    assert "no fault found: Other" in out  # the other target is checked all the same
    main([*entry(), "README.md"])
    assert capsys.readouterr().out == ""


def test_pre_commit_runs_it(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("pre_commit")
    copy = tmp_path / "hooks"  # of the hook alone: pre-commit clones a repository, and not its changes
    copy.mkdir()
    (copy / ".pre-commit-hooks.yaml").write_text((ROOT / ".pre-commit-hooks.yaml").read_text())
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "hooks")
    (repository / "another.py").write_text(OTHER + "\n# a change\n")
    git(repository, "add", ".")
    command = [sys.executable, "-m", "pre_commit", "try-repo", str(copy), "gradwatch-check", "--verbose"]
    program = tmp_path / "bin" / "gradwatch"  # as it is installed
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gradwatch "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    given = {
        "PRE_COMMIT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "PATH": path,
    }
    ended = subprocess.run(
        command, cwd=repository, env={**os.environ, **given}, text=True, capture_output=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "gradwatch check: another.Other" in ended.stdout
