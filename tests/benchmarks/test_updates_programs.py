"""The programs whose steps go wrong are found in time and by name; twins and healthy programs get no word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.optim import SGD
from updates import sample_error
from updates.judging import accused, judge, run, said
from updates.measure import accused_rows, chosen, main, sick_rows
from updates.programs import HEALTHY, IN_PROCESSES, PROGRAMS, SICK

needs_gloo = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="needs torch.distributed with gloo"
)


def each(programs: Iterable[str]) -> list[object]:
    """The names as parameters of a test; those of several processes need a backend."""
    return [pytest.param(name, marks=needs_gloo) if name in IN_PROCESSES else name for name in programs]


def test_the_set_is_one_of_bugs_with_forms_and_of_healthy_programs() -> None:
    assert len(PROGRAMS) == len(SICK) + len(HEALTHY)
    assert all(program.causes and program.kinds and program.source for program in SICK.values())
    assert not any(program.causes or program.kinds for program in HEALTHY.values())
    assert {name.rpartition(", ")[2] for name in PROGRAMS} == {"fit", "manual fit", "loop"}


@pytest.mark.parametrize("name", each(SICK))
def test_a_sick_program_is_found_within_20_steps_with_parameter_and_cause(name: str) -> None:
    heard = run(SICK[name], True, 0, True, short=True)[1]
    judged = said(SICK[name], heard)
    words = [(step, finding.kind, finding.message) for step, finding in heard.opened], [*map(str, heard.early or [])]
    assert (judged.found, judged.named, judged.first) == (True, True, True), words
    assert not judged.broken


@pytest.mark.slow
@pytest.mark.parametrize("name", each(SICK))
def test_a_repaired_twin_gets_no_word(name: str) -> None:
    judged = accused(*run(SICK[name], False, 0, True)[1:])
    assert not judged, judged.messages or judged


@pytest.mark.parametrize("name", each(HEALTHY))
def test_a_healthy_program_gets_no_word(name: str) -> None:
    judged = accused(*run(HEALTHY[name], False, 0, True)[1:])
    assert not judged, judged.messages or judged


def test_a_bug_that_does_harm_is_counted() -> None:
    result = judge("a layer in no optimizer, loop", 1)
    assert result.harms
    assert result.scores[0] < 0.6 < result.scores[1]
    row, total = sick_rows([result])
    assert row["runs"] == 1
    assert str(total["found"]).startswith(f"{row['found']} (")
    assert [row["accused"] for row in accused_rows([result])] == ["0 (0.0%, 0.0%-79.3%)"]


def test_programs_are_chosen_by_the_start_of_their_names() -> None:
    assert chosen(["zero_grad is missing"]) == [name for name in SICK if name.startswith("zero_grad")]
    with pytest.raises(ValueError, match="no program's name starts with 'nothing'"):
        chosen(["nothing"])


def test_the_tables_are_written(tmp_path: Path) -> None:
    main(1, ["a layer with a rate of zero, loop", "LoRA, loop"], tmp_path / "updates.csv")
    assert "a layer with a rate of zero, loop" in (tmp_path / "updates.csv").read_text()


def test_the_update_norm_of_what_is_kept_whole_is_exact() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    batch = torch.randn(32, 8), torch.randint(3, (32,))
    optimizer = SGD(network.parameters(), lr=0.1)
    of_params, of_layers = sample_error.errors_of(network, batch, optimizer, sample_error.DEFAULT, 3)
    assert (len(of_params), len(of_layers)) == (12, 6)
    assert max(error.relative for error in (*of_params, *of_layers)) < 1e-6
