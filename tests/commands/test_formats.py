"""The lines that GitHub Actions reads: levels, places, escapes; and the places of problems."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import pytest
from torch import nn

from gradwatch.commands.formats import workflow_commands
from gradwatch.commands.problems import Location, Outcome, location_of_class, problems_of
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.short_runs.run import Run

NAN = Finding("nonfinite", ("a",), 3, 1.0, 0.0, "100 % of it\r\nis NaN", severity="error")
DEAD = Finding("dead", ("b",), 3, 1.0, 0.0, "it is dead")


def commands_of(run: Run, kind: type) -> list[str]:
    return list(workflow_commands(Outcome(run, kind, problems_of(run, kind))))


def test_a_line_for_each_cause_and_each_unexplained_finding() -> None:
    causes = (
        Diagnosis("outlier batch", "50%: rose\nfast.", 0.9, (NAN,), ("look", "skip")),
        Diagnosis("clipping too hard", "By 0.01.", 0.5, (), ()),
    )
    run = Run("Net", (Snapshot(0, ()),), (NAN, DEAD), causes)
    first, second, third = commands_of(run, int)
    assert first == "::error title=gradwatch%3A GW113 outlier batch (nonfinite)::50%25: rose%0Afast. Try: look; skip."
    assert second == "::warning title=gradwatch%3A GW119 clipping too hard::By 0.01."
    assert third == "::warning title=gradwatch%3A GW004 dead::it is dead"
    assert commands_of(Run("Net", (Snapshot(0, ()),), (NAN,)), int) == [
        "::error title=gradwatch%3A GW003 nonfinite::100 %25 of it%0D%0Ais NaN"
    ]


def test_a_healthy_run_has_no_line() -> None:
    assert commands_of(Run("Net", (Snapshot(0, ()),)), nn.Linear) == []


def test_a_place_is_relative_to_the_current_folder_and_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "odd, 5%"
    folder.mkdir()
    (folder / "odd_place.py").write_text("\n\nclass Model:\n    pass\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    import odd_place

    assert location_of_class(odd_place.Model) == Location("odd, 5%/odd_place.py", 3)
    (line,) = commands_of(Run("Model"), odd_place.Model)
    assert line.startswith("::error file=odd%2C 5%25/odd_place.py,line=3,title=gradwatch%3A crash::no optimizer step")
    monkeypatch.chdir(folder)
    assert location_of_class(odd_place.Model) == Location("odd_place.py", 3)
    (tmp_path / ".git").mkdir()  # the folder of a repository: GitHub counts from there, wherever the check runs
    assert location_of_class(odd_place.Model) == Location("odd, 5%/odd_place.py", 3)
    del sys.modules["odd_place"]


def test_a_class_from_elsewhere_has_its_whole_path() -> None:
    found = location_of_class(Fraction)
    assert found is not None
    assert not found.is_inside
    assert found.line > 1
    assert location_of_class(int) is None
