"""The baseline: what is known does not fail, what is new does, and what is gone is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outcomes import CAUSE, DEAD, NAN, crashed, outcome, sick

from gradwatch.cli import main
from gradwatch.commands.baseline import Entry, held_against, read_baseline, updated, write_baseline
from gradwatch.commands.target import UsageError

TARGET = ("--model", "smoke_project.Net", "--data", "smoke_project.Data")
SIGMOID = ("--model.init_args.activation", "sigmoid")
FILE = Path("known.json")


def test_a_file_is_read_as_it_was_written_one_entry_a_line(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    entries = [Entry("b.Net", "GW004", ("net.*",)), Entry("a.Net", "own", ()), Entry("a.Net", "GW113", ("loss",))]
    write_baseline(path, [*entries, entries[0]])
    assert read_baseline(path) == tuple(sorted(entries))
    first = path.read_text()
    write_baseline(path, reversed(entries))
    assert path.read_text() == first
    assert sum('"rule"' in line for line in first.splitlines()) == 3
    write_baseline(path, [])
    assert read_baseline(path) == ()


def test_numbers_do_not_matter_and_other_layers_do() -> None:
    known = tuple(updated((), outcome(DEAD)))
    assert known == (Entry("outcomes.Model", "GW004", ("net.*",)),)

    def is_known(*layers: str) -> bool:
        return held_against(outcome(replace(DEAD, layers=layers, value=0.99, step=0)), known, FILE).exit_code == 0

    assert is_known("net.1", "net.13")
    assert is_known("net.77")
    assert not is_known("net.1", "head.0")
    assert not is_known("net.1.bias")


@pytest.mark.parametrize(
    ("pattern", "layer", "fits"),
    [
        ("*", "head", True),
        ("*", "a.b", False),
        ("**", "a.b.3", True),
        ("enc.**", "enc.3.w", True),
        ("a[*]", "a[0]", True),
    ],
)
def test_patterns_can_be_widened_by_hand(pattern: str, layer: str, fits: bool) -> None:
    (problem,) = outcome(replace(DEAD, layers=(layer,))).problems
    assert Entry("outcomes.Model", "GW004", (pattern,)).matches(problem) is fits


def test_what_is_gone_is_told_but_not_of_other_models_nor_after_a_crash() -> None:
    entries = (Entry("outcomes.Model", "GW001", ("net.*",)), Entry("another.Model", "GW001", ("net.*",)))
    assert held_against(sick(), entries, FILE).fixed == ("GW001 vanishing in outcomes.Model: net.*",)
    assert held_against(crashed(), entries, FILE).fixed == ()
    assert held_against(crashed(), entries, FILE).exit_code == 1
    assert entries[1] in tuple(updated(entries, sick()))
    assert entries[0] not in tuple(updated(entries, sick()))


def test_a_cause_that_is_known_takes_its_findings_with_it() -> None:
    known = tuple(updated((), outcome(NAN, causes=(CAUSE,))))
    held = held_against(sick(), known, FILE)
    assert [problem.rule for problem in held.unknown] == ["GW004", "slow_first_layer"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "there is no baseline"),
        ("{", "can't be read"),
        ("[]", "no gradwatch_baseline in it"),
        ('{"gradwatch_baseline": 2, "known": []}', "version 2"),
        ('{"gradwatch_baseline": 1}', "has a wrong entry"),
        ('{"gradwatch_baseline": 1, "known": [{"rule": "GW001"}]}', "model is missing"),
        ('{"gradwatch_baseline": 1, "known": [{"rule": 1, "model": "a", "layers": []}]}', "1 is no str"),
    ],
)
def test_a_wrong_file_is_named_with_the_way_out(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "known.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        read_baseline(path)


def test_on_the_command_line(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "known.json")

    def check(*args: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(["check", *TARGET, *args])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    code, _, err = check("--baseline", path)
    assert (code, f"write it with --baseline {path} --update-baseline" in err) == (2, True)
    assert check("--update-baseline")[0] == 2
    code, _, err = check(*SIGMOID, "--baseline", path, "--update-baseline")
    assert (code, "1 added, 0 removed" in err) == (0, True)
    code, out, _ = check(*SIGMOID, "--baseline", path)
    assert code == 0
    assert "nothing new: Net, 20 steps" in out
    assert "GW101 saturating activation: net.*" in out
    result: Any = json.loads(check(*SIGMOID, "--baseline", path, "--format", "json")[1])
    assert (result["exit_code"], result["healthy"]) == (0, False)
    assert [found["known"] for found in (*result["findings"], *result["diagnoses"])] == [True, True]
    code, out, _ = check("--baseline", path)
    assert code == 0
    assert "No longer found" in out
    assert "GW101 saturating activation in smoke_project.Net: net.*" in out
    assert check(*SIGMOID, "--baseline", path, "--steps", "10", "--model.init_args.fault", "uncleared")[0] == 1
    crash = ("--model.init_args.fault", "crash", "--baseline", path, "--update-baseline")
    code, _, err = check(*crash)
    assert (code, "stays as it is" in err) == (1, True)
    assert "0 added, 1 removed" in check("--baseline", path, "--update-baseline")[2]
