"""Small runs that the reporting tests show."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from rich.console import Console

from gradwatch.records import Diagnosis, Finding, Snapshot

NAN, INF = float("nan"), float("inf")


def vanishing_run(depth: int = 7, steps: int = 3) -> list[Snapshot]:
    """Linear and Sigmoid in turn, and a head; each pair takes off three quarters of the gradient."""
    layers = tuple(f"net.{i}" for i in range(1, 2 * depth + 2))
    kinds = (*("Linear", "Sigmoid") * depth, "Linear")
    linear = np.array([kind == "Linear" for kind in kinds])
    norms = 0.1 * 0.5 ** np.arange(2 * depth, -1, -1.0)
    return [
        Snapshot(
            step,
            layers,
            kinds,
            grad_norm=np.where(linear, 10 * norms, NAN),
            weight_norm=np.where(linear, 6.5, NAN),
            update_norm=np.where(linear, 0.1 * norms, NAN),
            grad_output_norm=norms,
            gain=[NAN, *[0.5] * (2 * depth)],
            saturated_fraction=np.where(linear, NAN, 0.25),
            params=tuple(f"{layer}.weight" for layer in np.array(layers)[linear]),
            param_grad_norm=10 * norms[linear],
            total_norm=1.0,
            total_norm_after=0.5,
            loss=2.3,
            trace_step=np.array([step]),
            trace_loss=np.array([2.3]),
            trace_total_norm=np.array([NAN]),
        )
        for step in range(steps)
    ]


FINDING = Finding("vanishing", ("net.1", "net.3"), 0, 1e-5, 1e-3, "the gradient vanishes (healthy: above 0.001).")
DIAGNOSIS = Diagnosis(
    "saturating activation", "Each Sigmoid takes 0.25.", 1.0, (FINDING,), ("ReLU with He", "skips", "norms")
)


def printed(thing: Any, width: int = 120, **options: Any) -> list[str]:
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(thing)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
