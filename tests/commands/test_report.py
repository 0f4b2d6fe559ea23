"""``gradwatch report``: it finds the record of a run, and says where the report is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradwatch.cli import main
from gradwatch.reporting.record import JsonlRecord
from tests.reporting.shown_runs import FINDING, vanishing_run


def write_run(path: Path) -> Path:
    record = JsonlRecord(path)
    for snapshot in vanishing_run():
        record.snapshot(snapshot)
    record.finding(FINDING)
    record.close()
    return path


@pytest.mark.parametrize("place", [".", "logs", "logs/version_0", "logs/version_0/gradwatch.jsonl"])
def test_a_run_is_found_by_its_folder_or_file(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "logs" / "version_0" / "gradwatch.jsonl")
    main(["report", str(tmp_path / place)])
    written = tmp_path / "logs" / "version_0" / "gradwatch.html"
    assert capsys.readouterr().out == f"The report: {written}\n"
    assert "vanishes" in written.read_text(encoding="utf-8")


def test_causes_that_are_not_in_the_record_are_worked_out(tmp_path: Path) -> None:
    main(["report", str(write_run(tmp_path / "run.jsonl")), "-o", str(tmp_path / "out.html")])
    assert "saturating activation" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_a_killed_runs_last_line_does_no_harm(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl")
    with path.open("a") as file:
        file.write('{"type": "snapshot", "step": 9, "grad_')
    main(["report", str(path)])
    assert (tmp_path / "run.html").is_file()


def test_one_of_several_runs_has_to_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in ("version_0", "version_1"):
        write_run(tmp_path / version / "gradwatch.jsonl")
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path)])
    said = capsys.readouterr().err
    assert "holds 2 records; give one of them:" in said
    assert str(tmp_path / "version_1" / "gradwatch.jsonl") in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "is not there"), ("", "holds no measured step"), ('{"a": 1}\n', "holds no measured step")],
)
def test_what_is_no_run_is_refused_in_a_sentence(
    content: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(path)])
    assert expected in capsys.readouterr().err


def test_a_folder_without_a_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path)])
    assert "holds no gradwatch.jsonl" in capsys.readouterr().err
