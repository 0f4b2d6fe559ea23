"""The programs of the ecosystem do what they claim, and can be measured, where their libraries are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from ecosystem.judging import FAULTS, PROGRAMS, Run, harms, sound_run
from ecosystem.measure import main, sum_of_faulty, sum_of_sound


def test_each_fault_is_one_of_a_sound_program() -> None:
    assert len(PROGRAMS) >= 40
    assert len(FAULTS) >= 30
    assert {fault.of for fault in FAULTS.values()} <= {*PROGRAMS}
    assert all(fault.causes and fault.source for fault in FAULTS.values())


def test_a_fault_harms_where_it_costs_a_good_part_of_the_gain() -> None:
    program, sound = PROGRAMS["GPT-2"], [Run(4.0, 2.0)]
    assert [harms(program, sound, [Run(4.0, after)]) for after in (2.1, 3.0, float("nan"))] == [False, True, True]


def test_programs_that_do_not_learn_and_faults_that_do_no_harm_are_not_counted() -> None:
    one = {"learned": 2, "runs": 2, "accused": 1}
    assert sum_of_sound([one, {**one, "learned": 1}])["programs that learn"] == 1
    fault = {"runs": 2, "found": 2, "first": 1, "three": 2, "harms": True}
    assert sum_of_faulty([fault, {**fault, "harms": False}])["faults that harm"] == 1


@pytest.mark.parametrize("name", ["GCN", "exact Gaussian process"])
def test_a_sound_program_learns(name: str) -> None:
    program = PROGRAMS[name]
    if not program.is_there:
        pytest.skip(f"needs {program.needs}: pip install gradwatch[ecosystem]")
    run = sound_run(name, 0)
    assert not run.error
    assert not program.has_learned(run.before)
    assert program.has_learned(run.after)


def test_the_tables_are_written(tmp_path: Path) -> None:
    if not PROGRAMS["exact Gaussian process"].is_there:
        pytest.skip("needs gpytorch: pip install gradwatch[ecosystem]")
    main(1, ["exact Gaussian process"], tmp_path / "ecosystem.csv")
    assert "exact Gaussian process" in (tmp_path / "ecosystem.csv").read_text()
