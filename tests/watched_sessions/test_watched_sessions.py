"""A session of healthy trainings under ``pytest --gradwatch`` is green, and each sick one fails for its fault."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUICK = "smoke or several or no_training or crash or callbacks or goes_on or nothing or search"
pytestmark = pytest.mark.skipif(
    not any(point.value == "gradwatch.pytest_plugin" for point in entry_points(group="pytest11")),
    reason="the installed gradwatch has no entry point pytest11: install this checkout, also an editable one, anew",
)


def session(folder: Path, name: str, *args: str, seed: int = 0) -> str:
    """What pytest prints for a session in a folder that holds nothing but the tests."""
    for path in HERE.glob("*_trainings.py"):
        shutil.copy(path, folder)
    quiet = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "--show-capture=no"]
    command = [sys.executable, "-B", "-m", "pytest", "--gradwatch", *quiet, *args, name]
    environment = {**os.environ, "SESSION_SEED": str(seed), "COLUMNS": "150"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert sorted(path.name for path in folder.iterdir()) == ["healthy_trainings.py", "sick_trainings.py"]
    return ran.stdout


def test_a_few_healthy_trainings_are_passed(tmp_path: Path) -> None:
    assert re.search(
        r"^\d+ passed, \d+ deselected", session(tmp_path, "healthy_trainings.py", "-k", QUICK), re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_all_healthy_trainings_are_passed(tmp_path: Path, seed: int) -> None:
    printed = session(tmp_path, "healthy_trainings.py", seed=seed)
    assert re.search(r"^(\d+) passed in", printed, re.MULTILINE), printed


def test_each_sick_training_fails_for_its_fault(tmp_path: Path) -> None:
    printed = session(tmp_path, "sick_trainings.py")
    failed = re.findall(
        r"^FAILED sick_trainings.py::test_(\w+) - Failed: sick training: (.*) in \w+$", printed, re.MULTILINE
    )
    assert len(failed) == 10, printed
    assert [name for name, kinds in failed if name.replace("_", "-") not in kinds.split(", ")] == []
