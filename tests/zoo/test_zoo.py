"""Watching never ends a run and never changes one: each case is run bare and watched, and everything is compared."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from zoo import FITS, LOOPS, MODULES, Case, FitOfModule, ModuleCase, TrainingCase
from zoo_run import Run, check

# Odd names, odd numbers, or odd shapes.
REPORTED = [
    "names_that_are_patterns",
    "names_of_wrappers",
    "NamesWithDots",
    "class_without_a_proper_name",
    "many_tiny_layers",
    "rows_without_an_entry",
    "loss_that_is_no_number",
    "GradientsThatOverflow",
    "ParametersOfManyKinds",
    "parameter_that_wraps_another",
    "CellsOfAllKinds",
    "layer_removed_during_a_run",
    "only_functional_calls",
]

for path in sorted(Path(__file__).parent.glob("zoo_*.py")):
    importlib.import_module(path.stem)


def cases(known: Sequence[Case]) -> list[Any]:
    marks = [pytest.mark.skipif(bool(case.skip), reason=case.skip or "never") for case in known]
    return [pytest.param(case, id=case.name, marks=mark) for case, mark in zip(known, marks, strict=True)]


@pytest.mark.parametrize("case", cases(MODULES))
def test_module_in_a_loop(case: ModuleCase, folder: Path) -> None:
    check(case.loop, case, folder, "watched", "seldom")


@pytest.mark.parametrize("case", cases(MODULES))
def test_module_in_a_fit(case: ModuleCase, folder: Path) -> None:
    check(case.fit, case, folder, "watched", "transformed")


@pytest.mark.parametrize("case", cases(FITS))
def test_fit(case: TrainingCase, folder: Path) -> None:
    check(case.train, case, folder, "watched", "transformed")


@pytest.mark.parametrize("case", cases(LOOPS))
def test_loop(case: TrainingCase, folder: Path) -> None:
    check(case.train, case, folder, "watched", "seldom")


@pytest.mark.parametrize("name", REPORTED)
def test_odd_modules_are_reported(name: str, folder: Path) -> None:
    """Odd names and numbers are printed, drawn and written."""
    (case,) = (case for case in MODULES if case.name == name)
    run = Run("watched", folder / "reported" / name)
    run.own = run.new_callbacks(summary=True, histogram_every_n_steps=1)

    def train(run: Run) -> None:
        logger = [TensorBoardLogger(run.folder, ""), CSVLogger(run.folder)]
        run.trainer(max_steps=3, logger=logger).fit(FitOfModule(case, run))

    trail = run.trail(train)
    assert not trail.error, f"{trail.error}{trail.where}"
    assert run.history


def test_every_name_is_given_once() -> None:
    names = [case.name for case in [*MODULES, *FITS, *LOOPS]]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert len(names) >= 120
