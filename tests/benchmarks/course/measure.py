"""Measure which runs gradwatch says not to learn, which too short to tell, and which learning runs it says so of.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m course.measure --csv_file course/outcomes.csv

It takes half an hour.

The truth of a run comes from a training without gradwatch, and from the loss on all of its data, without dropout. A
run has not learned where that is not 2 % below the loss of the untrained network and of the best constant prediction.
It learns where it is 10 % below both. The others are left out and counted, and so are those that end in NaN. Each run
is watched in a loop, as by the monitor with its default settings, and checked, as by ``gradwatch check`` with as many
steps. The same trainings are stopped after 1, 3 and 5 steps: these are too few to tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Literal

import torch
from blind.judging import loader
from blind.programs_base import Split, Training
from course.programs import FAULTS, HEALTHY, logits, programs
from detection.intervals import wilson
from detection.tables import Report, Row
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import gradwatch
from gradwatch.preflight.verdict import check_training
from gradwatch.progress import judge_run

Truth = Literal["learns", "not learning", "between"]
NO_FALL, FALL = 0.98, 0.9  # of the loss at the start, and of that of a constant prediction
SHORT = (1, 3, 5)


@dataclass(frozen=True)
class Said:
    """The word on one run.

    Attributes:
        program, seed: the run.
        how: ``monitor`` or ``check``.
        steps: optimizer steps.
        truth: what it does when it is not watched.
        course: the course of the loss in gradwatch's eyes.
        words: kinds of findings, and causes.
    """

    program: str
    seed: int
    how: str
    steps: int
    truth: Truth
    course: str
    words: tuple[str, ...]


def truth_of(training: Training, seed: int) -> Truth:
    """Return what an unwatched run does, by its loss on all data it learns from."""
    torch.manual_seed(seed)
    data, network = training.data(), training.network()
    optimizer = training.optimizer(param for param in network.parameters() if param.requires_grad)
    start = whole_loss(network, training, data)
    for inputs, targets in batches(training, data):
        optimizer.zero_grad()
        loss = training.loss(network(inputs), targets)
        loss.backward()
        optimizer.step()
    left = whole_loss(network, training, data) / min(start, constant(training, data))
    return "not learning" if left > NO_FALL else "learns" if left < FALL else "between"


def batches(training: Training, data: Split) -> Iterator[tuple[Tensor, ...]]:
    feed = loader(data, training.batch)
    return islice(chain.from_iterable(repeat(feed)), training.steps)


def whole_loss(network: nn.Module, training: Training, data: Split) -> float:
    network.eval()
    with torch.no_grad():
        loss = float(training.loss(network(data.inputs), data.targets))
    network.train()
    return loss


def constant(training: Training, data: Split) -> float:
    """Return the loss of the best constant prediction."""
    if data.targets.is_floating_point():
        mean = data.targets.mean(0, keepdim=True)
        best = mean.logit() if training.loss is logits else mean
        return float(training.loss(best.expand_as(data.targets), data.targets))
    shares = data.targets.bincount() / len(data.targets)
    return float(training.loss(shares.log().expand(len(data.targets), -1), data.targets))


def watched(training: Training, seed: int, steps: int) -> tuple[str, tuple[str, ...]]:
    """Return the course and the words of a loop that is watched with the default settings."""
    torch.manual_seed(seed)
    data, network = training.data(), training.network()
    optimizer = training.optimizer(param for param in network.parameters() if param.requires_grad)
    with gradwatch.watch(network, on_finding=lambda _: None) as watcher:
        for inputs, targets in batches(replace(training, steps=steps), data):
            optimizer.zero_grad()
            loss = training.loss(network(inputs), targets)
            loss.backward()
            watcher.step(optimizer, loss)
    words = (*(found.kind for found in watcher.findings), *(cause.cause for cause in watcher.diagnosis()))
    return judge_run(watcher.history).course, tuple(dict.fromkeys(words))


def checked(training: Training, seed: int, steps: int) -> tuple[str, tuple[str, ...]]:
    """Return the course and the words of a check."""
    torch.manual_seed(seed)
    feed, network = loader(training.data(), training.batch), training.network()
    run = check_training(network, feed, loss=training.loss, optimizer=training.optimizer, steps=steps)
    words = (*(found.kind for found in run.findings), *(cause.cause for cause in run.diagnoses))
    return run.judgement.course, tuple(dict.fromkeys(words))


LOOKS = {"monitor": watched, "check": checked}


def said_of(name: str, training: Training, seed: int, short: bool) -> Iterator[Said]:
    """Yield the words on one run: on all of it, and on its first steps."""
    truth = truth_of(training, seed)
    for how, look in LOOKS.items():
        for steps in (*(SHORT if short else ()), training.steps):
            yield Said(name, seed, how, steps, truth, *look(training, seed, steps))


def table(said: Sequence[Said]) -> list[Row]:
    """A row for each kind of run and each way to look at it."""
    rows: list[Row] = []
    kinds = {
        "do not learn": lambda one: one.steps > max(SHORT) and one.truth == "not learning",
        "are sound and learn": lambda one: one.steps > max(SHORT) and one.truth == "learns" and is_sound(one),
        "too short": lambda one: one.steps <= max(SHORT),
    }
    for kind, belongs in kinds.items():
        for how in LOOKS:
            runs = [one for one in said if one.how == how and belongs(one)]
            rows.append(
                {
                    "runs that": kind,
                    "seen by": how,
                    "runs": len(runs),
                    "not learning": share(sum("not-learning" in one.words for one in runs), len(runs)),
                    "a word of any kind": share(sum(bool(one.words) for one in runs), len(runs)),
                    "too few steps": share(sum(one.course == "too few steps" for one in runs), len(runs)),
                }
            )
    return rows


def is_sound(one: Said) -> bool:
    return one.program.partition(": ")[2] in HEALTHY


def share(hits: int, runs: int) -> str:
    low, high = wilson(hits, runs)
    return f"{hits} ({hits / max(runs, 1):.1%}, {low:.1%}-{high:.1%})"


def wrong(said: Sequence[Said]) -> list[Row]:
    """A row for each run that is not judged as it should be."""
    return [
        {**asdict(one), "words": ", ".join(one.words)}
        for one in said
        if (one.truth == "learns" and is_sound(one) and one.words and one.steps > max(SHORT))
        or (one.truth == "not learning" and "not-learning" not in one.words and one.steps > max(SHORT))
        or (one.course != "too few steps" and one.steps <= max(SHORT))
    ]


def main(
    seeds: int = 2, tasks: list[str] | None = None, changes: list[str] | None = None, csv_file: Path | None = None
) -> None:
    """Measure and print the tables.

    Args:
        seeds: number of starts of each program.
        tasks: some of the tasks, by name; all by default.
        changes: some of the changes, by name; all by default.
        csv_file: also write the rows here.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [
        (name, training)
        for name, training in programs({**FAULTS, **HEALTHY}).items()
        if (tasks is None or name.partition(":")[0] in tasks)
        and (changes is None or name.partition(": ")[2] in changes)
    ]
    runs = track([(*one, seed) for one in chosen for seed in range(seeds)], console=Console(stderr=True))
    said = [one for name, training, seed in runs for one in said_of(name, training, seed, short=seed == 0)]
    report = Report(csv_file)
    report.table("not as it should be", wrong(said), last_apart=False)
    report.table("course", table(said), last_apart=False)
    between = {(one.program, one.seed) for one in said if one.truth == "between"}
    report.table("left out", [{"between": len(between), "of": len(chosen) * seeds}], last_apart=False)
    report.save()


if __name__ == "__main__":
    auto_cli(main)
