"""``gradwatch compare``: it says where two runs part, in 80 columns and as HTML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradwatch.cli import main
from gradwatch.records import Snapshot
from gradwatch.reporting.record import JsonlRecord
from tests.reporting.shown_runs import vanishing_run


def write_run(path: Path, run: list[Snapshot], **settings: str) -> str:
    record = JsonlRecord(path)
    for snapshot in run:
        record.snapshot(snapshot)
    record.about(settings, {})
    record.close()
    return str(path)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """Two runs that part at step 1, and have another rate."""
    first = vanishing_run(steps=4)
    second = [first[0], *(replace(each, grad_norm=50 * each.grad_norm) for each in first[1:])]
    return write_run(tmp_path / "a.jsonl", first, lr="0.1"), write_run(tmp_path / "b.jsonl", second, lr="5")


def test_it_says_where_they_part_in_80_columns(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["compare", *runs])
    printed = capsys.readouterr().out
    assert "The runs part at step 1: the gradient of net.15 is 1.00 in A and 50.0 in B" in printed
    assert "lr: 0.1 in A, 5 in B" in printed
    assert "norm of the weights             nowhere" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_equal_runs_are_called_so(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", runs[0], runs[0]])
    assert "The runs are equal in all 4 steps" in capsys.readouterr().out


def test_it_is_written_where_asked(runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.html"
    main(["compare", *runs, "-o", str(out)])
    assert f"The comparison: {out}" in capsys.readouterr().out
    assert "<h1>The runs part at step 1" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("more", [["--tolerance", "0"], ["--tolerance", "much"]])
def test_a_wrong_tolerance_is_refused(
    more: list[str], runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *runs, *more])
    assert "expected a number above 0" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", runs[0], "nowhere"])
    assert "nowhere is not there" in capsys.readouterr().err
