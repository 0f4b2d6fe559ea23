"""One watched run of a program of the sealed set, and what gradwatch says of it."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from sealed.base import Program, Setup
from sealed.check import build, everything
from sealed.places import place_of

from gradwatch import GradientMonitor, GradientWarning


@dataclass(frozen=True)
class Run:
    """What was said of one run.

    Attributes:
        seed: start of the run.
        score: on held-out data, at the end.
        kinds: of the findings, each once, in the order they opened.
        causes: the likely causes, the likeliest first.
        texts: the findings' messages, the causes with their evidence, and warnings of a run without a finding.
        operation: True if one of them names the operation where the numbers break.
        function: the same of the function.
        place: True if one of them names both.
        failed: the parts of the watching that failed.
        error: why the training ended early, or "".
    """

    seed: int
    score: float = math.nan
    kinds: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    operation: bool = False
    function: bool = False
    place: bool = False
    failed: tuple[str, ...] = ()
    error: str = ""

    @property
    def found(self) -> bool:
        """Return True if there is a finding, a cause or a warning."""
        return bool(self.kinds or self.causes or self.texts)

    def names(self, causes: Sequence[str], among: int) -> bool:
        """Return True if one of the causes is among the first."""
        return bool({*causes} & {*self.causes[:among]})


@dataclass(frozen=True)
class Result:
    """The runs of a program as it is, and those of its repaired twin if it is faulty."""

    program: Program
    runs: tuple[Run, ...]
    twins: tuple[Run, ...]


def watched(program: Program, faulty: bool, seed: int) -> Run:
    """Train with a default monitor; what was said until a crash counts, and the crash alone doesn't."""
    setup, monitor, error = build(program, faulty, seed), GradientMonitor(record_path=False), ""
    score = math.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(setup, monitor)
            score = setup.score(setup.module)
        except Exception as crash:
            error = f"{type(crash).__name__}: {crash}"
    findings, told, failed = monitor.findings, monitor.diagnosis(), tuple(map(str, monitor.out_of_service))
    alone = [str(one.message) for one in caught if issubclass(one.category, GradientWarning)]
    warned = [text.partition(" Try")[0] for text in alone]
    seen = [*(one.message for one in findings), *(one.evidence for one in told), *warned]
    advice = [text for one in told for text in one.remedies]  # names operations in general, so it must name both
    place = place_of(program)
    return Run(
        seed,
        score,
        tuple(dict.fromkeys(one.kind for one in findings)),
        tuple(one.cause for one in told),
        (
            *(f"{one.kind} at step {one.step}: {one.message}" for one in findings),
            *map(str, told),
            *(alone if not (findings or failed) else ()),
        ),
        place is not None and any(map(place.has_operation, seen)),
        place is not None and any(map(place.has_function, seen)),
        place is not None and place.is_named([*seen, *advice]),
        failed,
        error,
    )


def fit(setup: Setup, monitor: GradientMonitor) -> None:
    """Train on the CPU as :func:`sealed.check.train` does, with the monitor, and keep its summary off the terminal."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=setup.epochs,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **setup.trainer,
    )
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer.fit(setup.module, setup.loader)


def named(name: str, themes: tuple[str, ...]) -> Program:
    """Return the program of that name."""
    for program in everything(themes):
        if program.name == name:
            return program
    raise ValueError(f"there is no {name!r} in {', '.join(themes)}")


Runs = tuple[tuple[Run, ...], tuple[Run, ...]]


def runs_of(name: str, themes: tuple[str, ...], seeds: int) -> Runs:
    """Run a program on one thread, once with each seed, and its twin if it is faulty."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    program = named(name, themes)
    sound = tuple(watched(program, False, seed) for seed in range(seeds))
    return (tuple(watched(program, True, seed) for seed in range(seeds)), sound) if program.fault else (sound, ())


def judge(name: str, themes: tuple[str, ...], seeds: int) -> Result:
    """Run a program in a process of its own; one that dies has said nothing."""
    program = named(name, themes)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            runs, twins = pool.submit(runs_of, name, themes, seeds).result()
        except Exception as death:
            runs = tuple(Run(seed, error=f"{type(death).__name__}: {death}") for seed in range(seeds))
            twins = runs if program.fault else ()
    return Result(program, runs, twins)
