"""The registry is complete, a result survives its file, and the tables hold the results."""

import ast
import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from gradwatch import Finding
from gradwatch.examples import baseline
from gradwatch.examples.comparison import scoreboard
from gradwatch.examples.comparison.remedies import RUNS, find
from gradwatch.examples.comparison.results import Result, load, load_all

EXAMPLES = Path(baseline.__file__).parent


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_registered_run_can_be_built(run: object) -> None:
    assert sum(param.numel() for param in run.build(64, 10).parameters()) > 100_000
    assert find(run.name) is run


def test_no_remedy_escapes_the_registry() -> None:
    registered = {run.target for run in RUNS}
    for path in EXAMPLES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and "Baseline" in [getattr(base, "id", "") for base in node.bases]:
                assert f"{path.stem}.{node.name}" in registered


def test_every_cards_command_is_a_registered_run() -> None:
    for path in EXAMPLES.glob("*.py"):
        command = re.search(rf"``python examples/{path.name} ([^`]*)``", path.read_text())
        runs = [run for run in RUNS if run.target.startswith(f"{path.stem}.")]
        if command and runs:  # those on sequences are not compared with the others
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(type(runs[0].build(64, 10)), "model", skip={"in_features", "num_classes"})
            given = re.findall(r"--model\.\w+ \S+", command[1])
            model = parser.parse_args(" ".join(given).split()).model
            names = [option.split()[0].removeprefix("--model.") for option in given]
            assert any(all(run.settings.get(name) == model[name] for name in names) for run in runs), path


def test_names_are_unique() -> None:
    assert len({run.name for run in RUNS}) == len(RUNS)


def result(name: str, seed: int, accuracy: float, **more: object) -> Result:
    curves = {"train_loss": [2.0, 1.0 - accuracy], "val_accuracy": [accuracy - 0.1, accuracy]}
    settings = {"dataset": "fashion-mnist", "max_epochs": 2, "batch_size": 512, "fast": False}
    known = {"seconds": 1.5, "settings": settings, "test_accuracy": accuracy, "steps_per_epoch": 10, "curves": curves}
    norms = {"layers": ("first", "last"), "start": (seed * 1e-3, 1.0), "end": (0.5, 0.25)}
    return Result(name, "family", seed, **{**known, **norms, **more})


RESULTS = [
    *(result("relu", seed, accuracy) for seed, accuracy in ((1, 0.7), (2, 0.8), (3, 0.9))),
    *(result("adam", seed, accuracy) for seed, accuracy in ((1, 0.91), (2, 0.65))),
    Result("adam", "family", 3, error="gone | for\ngood"),
    Result("mine.Broken", "your own", 1, error="no"),
]


def test_a_result_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    findings = (Finding("exploding", ("first",), 3, math.inf, 1e6, "it explodes", "error", closed_step=9),)
    written = result("relu", 1, 0.7, findings=findings, end=(math.inf, 0.0), curves={"train_loss": [math.inf, 0.1]})
    folder = tmp_path / "runs" / "relu"
    folder.mkdir(parents=True)
    written.save(folder)
    assert load(folder) == written
    assert load(tmp_path) is None
    assert load_all(tmp_path) == [written]
    assert "Infinity" not in (folder / "result.json").read_text()  # strict JSON


def test_a_missing_number_stays_missing(tmp_path: Path) -> None:
    Result("relu", "family", 1, error="no").save(tmp_path)
    read = load(tmp_path)
    assert read is not None
    assert math.isnan(read.test_accuracy)
    assert math.isnan(read.train_loss)
    assert math.isnan(read.ratio_start)
    assert read.steps_to_good is None


def test_the_best_on_average_is_first_and_failures_are_last() -> None:
    rows = scoreboard.of_runs(RESULTS).rows
    order = ["relu 1", "relu 2", "relu 3", "adam 1", "adam 2", "adam 3", "mine.Broken 1"]
    assert [f"{row[0]} {row[1]}" for row in rows] == order


def test_a_row_holds_the_results_numbers() -> None:
    header, row = scoreboard.of_runs(RESULTS[:1]).header, scoreboard.of_runs(RESULTS[:1]).rows[0]
    shown = dict(zip(header, row, strict=False))
    assert shown["test accuracy"] == "0.7000"
    assert shown["published"] == "0.7882"
    assert shown["steps to 70 %"] == "20"
    assert row[5:9] == ["1.0e-03", "5.0e-01", "1.0e-03", "2.0e+00"]


def test_published_figures_are_only_held_against_their_own_data() -> None:
    elsewhere = result("relu", 1, 0.7, settings={"dataset": "digits"})
    assert scoreboard.of_runs([elsewhere]).rows[0][3] == "-"


def test_the_spread_is_that_of_the_seeds() -> None:
    rows = {row[0]: row for row in scoreboard.over_seeds(RESULTS).rows}
    accuracies = [0.7, 0.8, 0.9]
    assert rows["relu"][1:4] == [
        "3",
        f"{np.mean(accuracies):.4f} ± {np.std(accuracies, ddof=1):.4f}",
        "0.7000 to 0.9000",
    ]
    assert rows["relu"][5:] == ["2.0e-03", "3 of 3"]
    assert rows["adam"][1] == "2 of 3"
    assert rows["adam"][6] == "1 of 2"
    assert rows["mine.Broken"][1:] == ["0 of 1", *["-"] * 5]


def test_a_run_that_diverged_has_its_row() -> None:
    curves = {"train_loss": [2.3, math.inf], "val_accuracy": [0.1, 0.1]}
    runs = [result("ascent", seed, 0.1, curves=curves, start=(math.inf, 0.0)) for seed in (1, 2)]
    assert scoreboard.over_seeds(runs).rows[0][4:] == ["inf", "-", "0 of 2"]
    assert scoreboard.of_runs(runs).rows[0][4:8] == ["inf", "inf", "5.0e-01", "-"]


def test_every_table_is_as_wide_as_its_header() -> None:
    for table in (scoreboard.of_runs(RESULTS), scoreboard.over_seeds(RESULTS)):
        assert {len(row) for row in table.rows} == {len(table.header)}
        lines = table.markdown().splitlines()[2:]
        assert {line.count("|") for line in lines} == {len(table.header) + 1}


def test_files_hold_all_runs(tmp_path: Path) -> None:
    scoreboard.write(RESULTS, tmp_path)
    text = (tmp_path / "scoreboard.md").read_text()
    assert "dataset fashion-mnist, max_epochs 2, batch_size 512." in text
    assert "failed: gone / for good |" in text
    with (tmp_path / "scoreboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(RESULTS)
    assert {float(row["test_accuracy"]) for row in rows if row["test_accuracy"]} == {0.7, 0.8, 0.9, 0.91, 0.65}
