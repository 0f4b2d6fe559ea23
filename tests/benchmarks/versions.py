"""Measure the time that watching adds to a step, here and in another checkout of gradwatch, in one process.

    python tests/benchmarks/versions.py OTHER_CHECKOUT [workload ...] [--rounds 25]

Each round trains a fresh model bare, watched by the other checkout and watched by this one. Every step is measured,
in a plain loop on one thread. Low quantiles of single steps are printed, as other load on the machine only adds time.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workloads import Transformer, resnet18

HERE = Path(__file__).parents[2]
QUANTILES = (0.05, 0.25, 0.5)


class Cell(nn.Module):
    """A cell that is called 50 times."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 64)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


def mlp() -> nn.Module:
    layers = [nn.Linear(128, 128)]
    for _ in range(63):
        layers += [nn.ReLU(), nn.Linear(128, 128)]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers)


WORKLOADS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {  # and steps a round
    "mlp": (mlp, lambda: torch.randn(64, 128), 8),
    "cell": (Cell, lambda: torch.randn(32, 50, 32), 8),
    "transformer": (Transformer, lambda: torch.randint(0, 100, (16, 32)), 2),
    "resnet18": (resnet18, lambda: torch.randn(16, 3, 32, 32), 2),
}


def watch_of(checkout: Path) -> Any:
    """``gradwatch.watch`` of a checkout, imported anew beside one that is imported already."""
    for name in [name for name in sys.modules if name.split(".")[0] == "gradwatch"]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    import gradwatch

    sys.path.remove(str(checkout))
    assert Path(gradwatch.__file__).is_relative_to(checkout), gradwatch.__file__
    return gradwatch.watch


def seconds(workload: str, watch: Any) -> list[float]:
    """Return the seconds of each step; bare if ``watch`` is None."""
    torch.manual_seed(0)
    make, inputs, steps = WORKLOADS[workload]
    model, x, taken = make(), inputs(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    watcher = watch(model, every_n_steps=1, on_finding=lambda _: None).__enter__() if watch else None
    for _ in range(steps + 2):
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        watcher.step(optimizer, loss.detach()) if watcher else optimizer.step()
        taken.append(time.perf_counter() - begin)
    if watcher:
        watcher.close()
    return taken[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("workloads", nargs="*", default=[*WORKLOADS], choices=[*WORKLOADS])
    parser.add_argument("--rounds", type=int, default=25)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sides = {"bare": None, "other": watch_of(chosen.other.resolve()), "here": watch_of(HERE)}
    for workload in chosen.workloads:
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(chosen.rounds):
            for side, watch in sides.items():
                taken[side] += seconds(workload, watch)
        for quantile in QUANTILES:
            ms = {side: 1e3 * float(np.quantile(values, quantile)) for side, values in taken.items()}
            added = ", ".join(f"{side} +{ms[side] - ms['bare']:.2f}" for side in ("other", "here"))
            print(f"{workload:12} {quantile:4.0%} of steps: bare {ms['bare']:.2f} ms, {added}", flush=True)


if __name__ == "__main__":
    main()
