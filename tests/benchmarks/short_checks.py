"""Measure how often the checks for a project's tests accuse a healthy network.

    OMP_NUM_THREADS=1 python tests/benchmarks/short_checks.py --csv_file short_checks.csv

It takes about a quarter of an hour. ``--networks '[LSTM,VAE]'`` takes some of the networks, ``--seeds 1`` one start of
each.

A smoke test gives a check small random data, so there is often nothing to learn. Each of small_trainings.py's networks
is sound for its data by expert judgement. It is trained as ``gradwatch.testing.assert_healthy_gradients`` does, for
20 steps under each optimizer, and its first batch is given to ``gradwatch.diagnose``. The seeds go in turn through the
forms that data is given in: a DataLoader of 32 or 16 samples a batch, or one batch of 32 or 128 at every step.

A rate may be too high for a network. A run is not healthy and does not count if the same training, unwatched, ends with
a loss over all its samples that is NaN or more than twice the first loss. The findings play no part in that. All other
runs count. Intervals are Wilson's at 95 %, as if the runs were independent, which those of one network are not.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from detection.intervals import wilson
from detection.tables import Report, Row
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from short_runs import OPTIMIZERS, Judged, passed, trained
from small_trainings import TRAININGS


def counts(judged: Sequence[Judged]) -> list[Row]:
    """A row a network, and the sum with its interval."""
    names = dict.fromkeys(run.network for run in judged)
    rows = [_count(name, [run for run in judged if run.network == name]) for name in names]
    whole = _count("all", judged)
    accused, runs = int(str(whole["accused"])), int(str(whole["runs"]))
    low, high = wilson(accused, runs)
    share = f"{accused} ({accused / max(runs, 1):.2%}, {low:.2%}-{high:.2%})"
    return [*rows, {**whole, "accused": share}]


def _count(name: str, judged: Sequence[Judged]) -> Row:
    runs = [run for run in judged if not run.diverged]
    return {
        "network": name, "runs": len(runs), "left out": len(judged) - len(runs),
        "accused": sum(bool(run.said) for run in runs),
    }  # fmt: skip


def accused(judged: Sequence[Judged]) -> list[Row]:
    """A row for each accused network and optimizer: the seeds, the causes or kinds, and the first message."""
    rows: list[Row] = []
    for (network, optimizer), group in groupby(judged, lambda run: (run.network, run.optimizer)):
        runs = [run for run in group if run.said and not run.diverged]
        if runs:
            kinds = Counter(kind for run in runs for kind in dict(run.said))
            row: Row = {"network": network}
            if optimizer:
                row["optimizer"] = optimizer
                row["losses"] = ", ".join("{:.3g} to {:.3g}".format(*run.losses) for run in runs if run.losses)
            row["seeds"] = ", ".join(str(run.seed) for run in runs)
            row["said"] = ", ".join(f"{kind} x{times}" for kind, times in kinds.most_common())
            rows.append({**row, "first message": runs[0].said[0][1]})
    return rows


def main(
    seeds: int = 4,
    networks: list[str] | None = None,
    steps: int = 20,
    optimizers: list[str] | None = None,
    csv_file: Path | None = None,
) -> None:
    """Measure and print the tables.

    Args:
        seeds: number of starts of each network under each optimizer; four use each form of data once.
        networks: some of small_trainings.py's, by name; all by default.
        steps: of a short training.
        optimizers: some of those above, by name; all by default.
        csv_file: also write the tables' rows here.

    Raises:
        ValueError: when a network or an optimizer does not exist.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names, rules = chosen(networks, TRAININGS), chosen(optimizers, OPTIMIZERS)
    short, passes = [], []
    for name in track(names, description="networks", console=Console(stderr=True)):
        short += [trained(name, seed, rule, steps) for rule in rules for seed in range(seeds)]
        passes += [passed(name, seed) for seed in range(seeds)]
    report = Report(csv_file)
    for check, judged in (("short training", short), ("single pass", passes)):
        report.table(check, counts(judged))
        report.table(f"{check}: accused", accused(judged), last_apart=False)
    report.save()


def chosen(names: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """Return the chosen names, all by default."""
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise ValueError(f"there is no {wrong[0]!r}; expected some of: {', '.join(known)}")
    return [*(names or known)]


if __name__ == "__main__":
    auto_cli(main)
