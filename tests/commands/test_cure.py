"""gradwatch cure on a small project: the remedies are tried, ranked and printed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gradwatch.cli import main

TARGET = ("--model", "smoke_project.Net", "--data", "smoke_project.Data")


def test_a_vanishing_gradient_is_cured(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "out" / "report.md"
    main(["cure", *TARGET, "--model.init_args.activation", "sigmoid", "--steps", "40", "--out", str(report)])
    out = capsys.readouterr().out
    assert "saturating activation" in out
    assert "untreated" in out
    assert "The best of them, as code:" in out
    written = report.read_text()
    assert written.startswith("# ")
    ast.parse(written.split("```python\n")[1].split("```")[0])
    assert not (here / "checkpoints").exists()


@pytest.mark.parametrize("args", [(), ("--model", "smoke_project.Nut"), ("--model", "smoke_project.Net")])
def test_wrong_use_ends_with_2(here: Path, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["cure", *args])
    assert capsys.readouterr().err.startswith("gradwatch cure: ")
