"""Trains the sealed set's programs bare and tables their scores: ``python -m sealed.check --programs '[...]'``."""

from __future__ import annotations

import csv
import importlib
import logging
import math
import time
import warnings
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from sealed.base import Program, Setup

THEMES = (
    "vision",
    "sequences",
    "tabular",
    "graphs",
    "generative",
    "reinforcement",
    "series",
    "optimizers",
    "numerics",
    "loops",
    "transfer",
)
HEAD = ("name", "kind", "seed", "score faulty or before", "score twin or after")
TABLE = Path(__file__).with_name("outcomes.csv")


def everything(themes: tuple[str, ...] = THEMES) -> list[Program]:
    """Collect the programs of the themes."""
    return [p for t in themes for p in importlib.import_module(f"sealed.{t}").PROGRAMS]


def build(program: Program, faulty: bool, seed: int) -> Setup:
    """Seed everything and build one run."""
    seed_everything(seed, verbose=False)
    return program.make(faulty, seed)


def train(setup: Setup) -> tuple[float, int, float]:
    """Train one run bare; give its score, its optimizer steps and its seconds."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, max_epochs=setup.epochs, **quiet, **setup.trainer)
    start = time.perf_counter()
    trainer.fit(setup.module, setup.loader)
    spent = time.perf_counter() - start
    return setup.score(setup.module), trainer.global_step, spent


def judge(program: Program, seed: int) -> tuple[list[object], str]:
    """Run a program with one seed; give its row and a line for the reader."""
    if program.fault:
        left, _, spent = train(build(program, True, seed))
        right, steps, more = train(build(program, False, seed))
        spent = max(spent, more)
    else:
        setup = build(program, False, seed)
        left = setup.score(setup.module)
        right, steps, spent = train(setup)
    gain = math.isfinite(right) and (not math.isfinite(left) or right - left > 0.1 * max(abs(left), abs(right)))
    kind = "faulty" if program.fault else "healthy"
    mark = "" if gain else "  <-- no difference"
    line = f"{program.name:36}{kind:9}{seed:3}{left:12.4g}{right:12.4g}{steps:6}{spent:7.1f}s{mark}"
    return [program.name, kind, seed, f"{left:.4g}", f"{right:.4g}"], line


def store(rows: list[list[object]]) -> None:
    """Put the rows into the table in place of earlier ones of the same programs."""
    new = {str(r[0]) for r in rows}
    kept: list[list[object]] = []
    if TABLE.exists():
        with TABLE.open(newline="") as file:
            kept = [list(r) for r in csv.reader(file) if r and r[0] not in new and r[0] != HEAD[0]]
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *sorted(kept + rows, key=lambda r: str(r[0]))])


def main(programs: list[str] | None = None, themes: tuple[str, ...] = THEMES, seeds: tuple[int, ...] = (0, 1)) -> None:
    """Train each program and its twin with each seed.

    Args:
        programs: names of the programs, all of the themes for none.
        themes: files to take the programs from.
        seeds: seeds to train with.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for program in everything(themes):
        if programs and program.name not in programs:
            continue
        try:
            both = [judge(program, seed) for seed in seeds]
        except Exception as error:
            print(f"{program.name:36}ERROR {type(error).__name__}: {error}", flush=True)
            continue
        print("\n".join(line for _, line in both), flush=True)
        store([row for row, _ in both])


if __name__ == "__main__":
    auto_cli(main)
