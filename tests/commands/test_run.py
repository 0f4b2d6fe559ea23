"""``gradwatch run`` runs a program as ``python`` does: arguments, paths, errors and exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradwatch.reporting.record import read_record

PAGE = Path(__file__).parents[2] / "docs" / "no-code.md"
PROGRAM = """
import os
import pickle
import signal
import sys

import helper


class Kept:
    pass


def main():
    what = sys.argv[1] if sys.argv[1:] else ""
    if what == "show":
        assert type(pickle.loads(pickle.dumps(Kept()))) is Kept
        print(__name__, sys.argv[1:], os.path.basename(sys.argv[0]), os.path.basename(__file__))
        print(os.path.samefile(sys.path[0], os.environ["EXPECTED_FOLDER"]), helper.VALUE, os.environ["GRADWATCH"])
        print(sorted({"numpy", "torch", "lightning"} & set(sys.modules)))
    if what == "raise":
        raise ValueError("boom")
    if what == "exit":
        sys.exit(7)
    if what == "wait":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        print("waits", flush=True)
        while True:
            pass


main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("programs")
    for place in (found / "scripts", found / "package"):
        place.mkdir()
        (place / "program.py").write_text(PROGRAM)
    (found / "scripts" / "helper.py").write_text("VALUE = 'beside the script'")
    (found / "helper.py").write_text("VALUE = 'in the current folder'")
    return found


@pytest.fixture(autouse=True)
def not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADWATCH", raising=False)


def gradwatch_run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gradwatch", "run", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_script_sees_what_it_sees_under_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPECTED_FOLDER", str(folder / "scripts"))
    ran = gradwatch_run(folder, "scripts/program.py", "show", "-o", "x", "-m", "--lr", "3", "--help")
    assert ran.stdout.splitlines() == [
        "__main__ ['show', '-o', 'x', '-m', '--lr', '3', '--help'] program.py program.py",
        "True beside the script 1",
        "[]",  # so that what a script sets for torch before it imports it holds
    ]
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_module_sees_what_it_sees_under_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPECTED_FOLDER", str(folder))
    ran = gradwatch_run(folder, "-o", "every_n_steps=5", "-o", "report=1", "-m", "package.program", "show", "-m")
    assert ran.stdout.splitlines() == [
        "__main__ ['show', '-m'] program.py program.py",
        "True in the current folder every_n_steps=5,report=1",
        "[]",
    ]


def test_what_is_in_the_environment_stays_unless_options_are_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPECTED_FOLDER", str(folder))
    monkeypatch.setenv("GRADWATCH", "report=1")
    assert " report=1\n" in gradwatch_run(folder, "scripts/program.py", "show").stdout
    assert " summary=0\n" in gradwatch_run(folder, "-o", "summary=0", "scripts/program.py", "show").stdout


@pytest.mark.parametrize("args", [["scripts/program.py"], ["-m", "package.program"]], ids=["script", "module"])
def test_an_error_is_shown_with_the_lines_of_the_program_alone(folder: Path, args: list[str]) -> None:
    ran = gradwatch_run(folder, *args, "raise")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "ValueError: boom"
    assert ran.stderr.count('  File "') == 2
    assert ran.stderr.count("program.py") == 2


def test_an_exit_code_is_kept(folder: Path) -> None:
    assert gradwatch_run(folder, "scripts/program.py", "exit").returncode == 7


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupt_ends_it_as_a_shell_expects(folder: Path) -> None:
    command = [sys.executable, "-m", "gradwatch", "run", "scripts/program.py", "wait"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline() == "waits\n"
        time.sleep(0.1)
        ran.send_signal(signal.SIGINT)
        _, errors = ran.communicate(timeout=60)
    assert ran.returncode == 130
    assert errors.splitlines()[-1].startswith("KeyboardInterrupt")
    assert "gradwatch" not in errors


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "gradwatch run: expected a script, or -m and a module"),
        (["scripts/none.py"], 2, "gradwatch run: there is no file scripts/none.py"),
        (["-m", "no_such_module"], 1, "ImportError: No module named no_such_module"),
    ],
)
def test_wrong_use_is_said(folder: Path, args: list[str], code: int, message: str) -> None:
    ran = gradwatch_run(folder, *args)
    assert (ran.returncode, ran.stderr.strip()) == (code, message)


def test_the_script_of_the_page_is_watched(tmp_path: Path) -> None:
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "train.py").write_text(code)
    ran = gradwatch_run(tmp_path, "-o", "summary=0", "train.py")
    assert ran.returncode == 0
    record = read_record(tmp_path / "gradwatch_logs" / "gradwatch.jsonl")
    assert [finding.kind for finding in record.findings] == ["vanishing"]
