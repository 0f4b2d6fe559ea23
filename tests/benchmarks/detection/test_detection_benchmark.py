"""The benchmark's parts work; the figures of so few steps mean nothing."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import measure
import pytest
import torch
from adapter import Trained, judge, options_of
from baselines import BASELINES, OnlyNaN, ZScore, judged, of_rules
from bases import on_digits, on_numbers
from cases import chosen, every_case
from cures import Cure, cure, fit, ways
from evidence import Look, gather
from intervals import share, sign_test, wilson
from program import Case, HalfPrecision, halves
from recording import Step
from store import Store, describe, key_of
from training import Outcome, Unwatched, build, outcome, train
from truth import is_healthy, verdict
from watching import Run, Said, watched

CASES = every_case()


def short(case: Case) -> Case:
    twin = None if case.twin is None else replace(case.twin, steps=2)
    return replace(case, program=replace(case.program, steps=2), twin=twin)


@pytest.mark.parametrize("family", sorted({case.family for case in CASES}))
def test_a_program_of_every_family_runs_under_gradwatch_and_the_rules(family: str) -> None:
    case = short(next(case for case in CASES if case.family == family))
    for look in (watched, judged):
        run = look(case.program, 0)
        assert -1 <= run.outcome.after <= 1
        assert Run.from_json(run.to_json()) == run


def test_there_is_enough_of_each_and_a_twin_differs() -> None:
    faults = [case for case in CASES if case.twin]
    assert len(faults) >= 90
    assert len(CASES) - len(faults) >= 60
    assert all(case.causes and describe(case.program) != describe(case.twin) for case in faults)


def test_the_halves_share_no_program_and_each_family_is_in_both() -> None:
    split = halves(CASES)
    assert set(split) == {case.name for case in CASES}
    for family in {case.family for case in CASES}:
        names = [case.name for case in CASES if case.family == family]
        known = sum(split[name] == "develop" for name in names)
        assert abs(2 * known - len(names)) <= 1
    assert split == halves(list(reversed(CASES)))


def test_an_unknown_family_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no family is called weather; expected some of: NaN batch"):
        chosen("develop", ["weather"])


@pytest.mark.parametrize(
    ("hits", "runs", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_is_that_of_the_tables(hits: int, runs: int, low: float, high: float) -> None:
    """The last is the example of Newcombe, Statistics in Medicine 17, 1998, table I."""
    assert wilson(hits, runs) == pytest.approx((low, high), abs=1e-4)


def test_shares_and_signs() -> None:
    assert share(5, 10) == "50% (24%-76%, n=10)"
    assert share(0, 0) == "-"
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(0, 0) == 1.0
    with pytest.raises(ValueError, match="3 hits of 2 runs"):
        wilson(3, 2)


def test_the_truth_is_how_the_pairs_come_out() -> None:
    good, bad = Outcome(0.1, 0.9, False, None), Outcome(0.1, 0.8, False, None)
    lost = replace(good, diverged=True)
    assert verdict([bad] * 3, [good] * 3) == "harmed"
    assert verdict([lost, lost, good], [good] * 3) == "harmed"
    assert verdict([good] * 3, [good] * 3) == "harmless"
    assert verdict([bad] * 3, [lost] * 3) == "twin is sick"
    assert not is_healthy([good, replace(good, after=0.12)])


def test_a_run_diverges_where_its_loss_stays_high() -> None:
    assert outcome([1.0, 11.0, 1.0, 1.0], 0.0, 0.5) == Outcome(0.0, 0.5, False, 1)
    assert outcome([1.0, 2.0, math.nan, math.nan, math.nan], 0.0, 0.5) == Outcome(0.0, 0.5, True, 2)


def test_watching_changes_no_outcome() -> None:
    program = on_digits(steps=30)
    outcomes = [watched(program, 0).outcome, judged(program, 0).outcome]
    outcomes.append(train(program, *build(program, 0), 0, Unwatched()))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_float16_with_a_scale_learns_as_float32_does() -> None:
    plain = on_digits(steps=60)
    scores = [watched(replace(plain, half=half), 0).outcome.after for half in (None, HalfPrecision(1024.0))]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_runs_are_kept_until_the_program_changes(tmp_path: Path) -> None:
    path, program = tmp_path / "deep" / "runs.jsonl", on_numbers()
    first = key_of("look", "source", program, 0)
    assert key_of("look", "source", on_numbers(), 0) == first
    assert key_of("look", "source", on_numbers(steps=7), 0) != first
    assert Store(path).get(first, lambda: [1, 2]) == [1, 2]
    assert Store(path).get(first, lambda: pytest.fail("it was made again")) == [1, 2]


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a", "value": 1}\n{"key": "b", "va', encoding="utf-8")
    store = Store(path)
    assert store.kept == {"a": 1}
    assert store.get("b", lambda: 2) == 2
    assert Store(path).kept == {"a": 1, "b": 2}


def test_the_rules_say_what_they_say() -> None:
    assert list(OnlyNaN().look(Step(0, loss=math.nan))) == ["nonfinite"]
    scores = ZScore()
    assert not any(list(scores.look(Step(i, total_norm=1 + i % 2))) for i in range(40))
    assert list(scores.look(Step(40, total_norm=100.0))) == ["spike"]
    run = Run(Outcome(0, 0, False, None), (Said(3, "NaN only: nonfinite"), Said(4, "z-score: spike")))
    assert [found.step for found in of_rules(run, "z-score").said] == [4]
    assert len({rules.name for rules in BASELINES}) == len(BASELINES)


def test_measure_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [case for case in CASES if case.name in ("NaN batch/mlp adam early", "healthy: data and loss/wine")]
    few = [replace(few[0], program=replace(few[0].program, steps=40), twin=replace(few[0].twin, steps=40)), few[1]]
    monkeypatch.setattr("cases.every_case", lambda: few)
    threads = torch.get_num_threads()
    measure.main(
        "both", what=["detect", "causes", "healthy", "baselines"], seeds=1,
        csv_file=tmp_path / "table.csv", runs_file=tmp_path / "runs.jsonl",
    )  # fmt: skip
    torch.set_num_threads(threads)
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {row["rules"]: row["found"] for row in rows if row["table"] == "beside published rules"}
    assert found["NaN only"].startswith("100%")
    assert {row["table"] for row in rows} >= {"faults", "causes", "healthy programs"}


@pytest.mark.parametrize("name", ["clipping too hard/mlp norm", "loss scale/mlp overflow, skipped"])
def test_a_trainer_comes_to_the_same_score_as_the_loop(name: str) -> None:
    program = replace(next(case.program for case in CASES if case.name == name), steps=20)
    network, optimizer = build(program, 0)
    train(program, network, optimizer, 0, Unwatched())
    module = Trained(program, 0)
    torch.manual_seed(0)
    assert fit(SimpleNamespace(module=module, transforms=(), options=options_of(program)), program, 0) == judge(
        program, network
    )
    for param, other in zip(network.parameters(), module.network.parameters(), strict=True):
        assert torch.equal(param, other)


def test_remedies_are_chosen_and_applied() -> None:
    case = next(case for case in CASES if case.name == "init too small/mlp-4 sgd")
    case = replace(case, program=replace(case.program, steps=40), twin=replace(case.twin, steps=40))
    store = Store(None)
    cures = cure(gather([case], Look("gradwatch", "", watched), store, seeds=1), store)
    assert ways(cures)[-1]["family"] == "all"
    assert all(name for name in cures[0].names.values())


def test_a_cure_is_as_good_as_the_twin() -> None:
    found = Cure(CASES[0], 0.9, 0.1, {"first suggested": 0.895, "at random": 0.5}, {})
    assert found.is_cured("first suggested")
    assert not found.is_cured("at random")
    assert found.won_back("at random") == pytest.approx(0.5)
