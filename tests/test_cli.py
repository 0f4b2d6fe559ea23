"""The command line."""

from pathlib import Path

import pytest

from gradwatch.cli import main
from gradwatch.commands.words import as_typed
from gradwatch.reporting.record import read_record


def test_demo_shows_both_networks_and_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    main(["demo", "--max-epochs", "10", "--log-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Sigmoid, default init" in printed
    assert "ReLU, He init" in printed
    assert "vanishing since step 0" in printed
    assert "No finding." in printed
    assert f"{as_typed('tensorboard', module='tensorboard.main')} --logdir" in " ".join(printed.split())
    records = {path.parent.parent.name: read_record(path) for path in tmp_path.rglob("gradwatch.jsonl")}
    assert [finding.kind for finding in records["sigmoid-default-init"][1]] == ["vanishing"]
    assert records["relu-he-init"][1] == []


def test_demo_on_fashion_mnist(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--data-dir", str(data_dir), "--max-epochs", "1", "--log-dir", str(tmp_path)])
    assert "vanishing since step 0" in capsys.readouterr().out


def test_a_folder_without_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz"):
        main(["demo", "--data-dir", str(tmp_path), "--log-dir", str(tmp_path / "logs")])


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["demo", "--help"],
        ["run", "--help"],
        ["check", "--help"],
        ["cure", "--help"],
        ["report", "--help"],
        ["compare", "--help"],
    ],
)
def test_help_says_what_there_is(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(args)
    program = " ".join(as_typed("gradwatch").split())
    assert f"usage: {program} {args[0] if args[1:] else '[-h]'}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("args", [["nonsense"], ["demo", "--max-epochs", "0"], ["demo", "--model", "a.B"]])
def test_wrong_use_ends_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert "error: " in capsys.readouterr().err
