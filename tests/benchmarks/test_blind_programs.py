"""The blind programs do what they claim, and can be measured."""

from __future__ import annotations

from pathlib import Path

from blind.judging import BUGS, HEALTHY, PROGRAMS, judge
from blind.measure import accused, bug_rows, main


def test_the_set_is_one_of_bugs_with_twins_and_of_healthy_programs() -> None:
    assert len(PROGRAMS) == len(BUGS) + len(HEALTHY)
    assert all(program.causes and program.repair and program.source for program in BUGS.values())
    assert not any(program.causes or program.repair for program in HEALTHY.values())


def test_a_bug_that_does_harm_is_counted() -> None:
    result = judge("unknown targets masked too late", 1)
    assert result.harms
    assert result.scores[0] == -1
    row, total = bug_rows([result])
    assert row["found"] == 1
    assert str(total["found"]).startswith("1 (100.0%, ")
    assert [row["accused"] for row in accused([("one", result.said)])] == [1, total["found"]]


def test_the_tables_are_written(tmp_path: Path) -> None:
    main(1, ["the rate halves each step", "few features, a linear model"], tmp_path / "blind.csv")
    assert "the rate halves each step" in (tmp_path / "blind.csv").read_text()
