"""Measure how far ``update_norm`` is from a slow loop in float64 over copies of the weights.

    cd tests/benchmarks && OMP_NUM_THREADS=1 python -m updates.sample_error --csv_file sample_error.csv

It takes about five minutes.

Parameters up to a bound are kept whole for the length of a step; what is beyond it is sampled, and its norm estimated.
Each of the four workloads is trained for 20 steps, once with the default bound and once with a bound of 0 bytes, so
that all is sampled, under each of four optimizers: their updates differ in how much a few entries weigh. The error is
relative, ``|estimate / exact - 1|``. A table has the share of parameters and steps, and of layers and steps, with an
error of at most 5 %, and the largest error with its place. Updates of exactly zero must be exactly zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detection.tables import Report, Row
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer
from workloads import MAIN, WORKLOADS

import gradwatch

DEFAULT = 64 * 2**20
BOUNDS = {"64 MiB": DEFAULT, "0": 0}
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "SGD": partial(SGD, lr=1e-3),
    "SGD, momentum": partial(SGD, lr=1e-2, momentum=0.9),
    "Adam": partial(Adam, lr=1e-3),
    "AdamW": partial(AdamW, lr=3e-4, weight_decay=0.1),
}
CLOSE = 0.05


@dataclass(frozen=True)
class Error:
    """One norm at one step: its relative error, or infinity where one of the two is zero and the other is not."""

    name: str
    step: int
    estimate: float
    exact: float

    @property
    def relative(self) -> float:
        if self.exact == 0 or not np.isfinite(self.estimate):
            return 0.0 if self.estimate == self.exact else float("inf")
        return abs(self.estimate / self.exact - 1)


def errors_of(
    network: nn.Module, batch: tuple[Tensor, Tensor], optimizer: Optimizer, bound: int, steps: int
) -> tuple[list[Error], list[Error]]:
    """Train on one batch; return the errors of the parameters and of the layers at each step."""
    of_params: list[Error] = []
    of_layers: list[Error] = []
    x, y = batch
    with gradwatch.watch(network, detectors=[], update_bytes=bound) as watcher:
        for step in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x), y)
            loss.backward()
            before = {name: param.detach().double() for name, param in network.named_parameters()}
            snapshot = watcher.step(optimizer, loss)
            assert snapshot is not None
            exact = {
                name: (param.detach().double() - before[name]).norm().item()
                for name, param in network.named_parameters()
            }
            pairs = zip(snapshot.params, snapshot.param_update_norm, strict=True)
            of_params += [Error(name, step, float(norm), exact[name]) for name, norm in pairs]
            of_layers += [
                Error(layer, step, float(norm), _norm_of(layer, exact))
                for layer, norm in zip(snapshot.layers, snapshot.update_norm, strict=True)
                if _norm_of(layer, exact) >= 0
            ]
    return of_params, of_layers


def _norm_of(layer: str, exact: dict[str, float]) -> float:
    """The exact norm of a layer's own parameters; -1 where it has none."""
    own = [norm for name, norm in exact.items() if (name.rpartition(".")[0] or "(root)") == layer]
    return float(np.linalg.norm(own)) if own else -1.0


def row(workload: str, rule: str, bound: str, kind: str, errors: Sequence[Error]) -> Row:
    worst = max(errors, key=lambda error: error.relative)
    relative = np.array([error.relative for error in errors])
    return {
        "workload": workload,
        "optimizer": rule,
        "bytes kept": bound,
        "of": kind,
        "norms": len(errors),
        "within 5 %": f"{(relative <= CLOSE).mean():.2%}",
        "median": f"{np.median(relative):.1e}",
        "95th percentile": f"{np.quantile(relative, 0.95):.1e}",
        "largest": f"{worst.relative:.1e}",
        "where": f"{worst.name}, step {worst.step}",
    }


def measured(workload: str, rule: str, bound: str, steps: int) -> list[Row]:
    module, batch = WORKLOADS[workload].module(), next(iter(WORKLOADS[workload].loader()))
    optimizer = OPTIMIZERS[rule](module.network.parameters())
    of_params, of_layers = errors_of(module.network, batch, optimizer, BOUNDS[bound], steps)
    return [
        row(workload, rule, bound, "parameters", of_params),
        row(workload, rule, bound, "layers", of_layers),
    ]


def main(
    workloads: list[str] | None = None,
    optimizers: list[str] | None = None,
    steps: int = 20,
    csv_file: Path | None = None,
) -> None:
    """Measure and print the table.

    Args:
        workloads: some of mlp-64, resnet-18, transformer-6, rnn-cell-50; all by default.
        optimizers: some of those above, by name; all by default.
        steps: number of steps of each training.
        csv_file: also write the table here.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runs = [
        (workload, rule, bound)
        for workload in workloads or MAIN
        for rule in optimizers or OPTIMIZERS
        for bound in BOUNDS
    ]
    bar = track(runs, description="trainings", console=Console(stderr=True))
    rows = [row for run in bar for row in measured(*run, steps)]
    report = Report(csv_file)
    report.table("update_norm against float64", rows, last_apart=False)
    report.save()


if __name__ == "__main__":
    auto_cli(main)
