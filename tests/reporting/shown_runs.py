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


def deep_run(steps: int = 500, blocks: int = 21, layers: tuple[str, ...] = (), seed: int = 0) -> list[Snapshot]:
    """A transformer whose numbers are noise, which no packing makes smaller: 4 layers and 6 in each block."""
    rng = np.random.default_rng(seed)
    ends = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    inner = tuple(f"transformer.h.{i}.{end}" for i in range(blocks) for end in ends)
    layers = layers or ("transformer.wte", "transformer.wpe", *inner, "transformer.ln_f", "lm_head")
    count = len(layers)
    kinds = tuple("LayerNorm" if ".ln_" in layer else "Linear" for layer in layers)
    usual = 10 ** rng.normal(-1, 1, count)
    run = []
    for i in range(steps):
        norms = usual * 10 ** rng.normal(0, 0.3, count)
        total, since = float(np.linalg.norm(norms)), np.arange(max(50 * i - 49, 0), 50 * i + 1)
        run.append(
            Snapshot(
                50 * i,
                layers,
                kinds,
                grad_norm=norms,
                weight_norm=10 + rng.random(count),
                grad_output_norm=norms * rng.random(count),
                gain=0.5 + rng.random(count),
                update_norm=1e-3 * norms,
                size=np.full(count, 1000.0),
                total_norm=total,
                total_norm_after=min(total, 1.0),
                loss=3 / (1 + i / 20),
                trace_step=since,
                trace_loss=3 / (1 + since / 1000) + rng.normal(0, 0.05, len(since)),
            )
        )
    return run


def printed(thing: Any, width: int = 120, **options: Any) -> list[str]:
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(thing)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
