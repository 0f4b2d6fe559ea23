"""Dead units of ReLUs after a resume: what was counted goes on, whatever number of processes wrote the checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranked_training import in_processes, needs_gloo
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch import Watcher, watch
from gradwatch.probe.dead_units import UnitActivity

SAMPLES = 60  # a step, of all ranks; a unit is judged by 100
STEPS = 6


class HalfDead(nn.Sequential):
    """A ReLU of which half the units never fire, one fires now and then, and the others often."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 1))
        with torch.no_grad():
            self[0].bias[:5] = -50.0
            self[0].bias[5] = -1.6


def train(steps: range, ranks: tuple[int, ...], world: int, state: dict[str, Any] | None = None) -> Watcher:
    """Train a fresh model on some steps' batches, or a rank's part of them; lr=0 makes it the model at any step."""
    model: nn.Module = HalfDead()
    model = DistributedDataParallel(model) if len(ranks) < world else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, every_n_steps=1, detectors=[]) as watcher:
        if state is not None:
            watcher.load_state_dict(state)
            watcher.begin()
        for step in steps:
            x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(step)).chunk(world)
            model(torch.cat([x[rank] for rank in ranks])).square().mean().backward()
            watcher.step(optimizer)
    return watcher


def dead_shares(watcher: Watcher) -> list[float]:
    return [float(snapshot.dead_fraction[snapshot.layers.index("1")]) for snapshot in watcher.history]


def states_of(ranks: tuple[int, ...], world: int) -> list[dict[str, Any]]:
    """The states of a run after each of its steps."""
    return [train(range(stop), ranks, world).state_dict() for stop in range(1, STEPS)]


def assert_resumed(states: list[dict[str, Any]], ranks: tuple[int, ...], world: int, expected: list[float]) -> None:
    """A run that goes on from any of the states has the shares of an uninterrupted one, and NaN where that has none."""
    for stop, state in enumerate(states, start=1):
        np.testing.assert_array_equal(dead_shares(train(range(stop, STEPS), ranks, world, state)), expected)


def write(folder: Path, rank: int) -> None:
    distributed.init_process_group("gloo")
    states = states_of((rank,), 2)
    if rank == 0:  # as Lightning does
        (folder / "of_two.json").write_text(json.dumps(states))


def resume(folder: Path, expected: list[float], rank: int) -> None:
    distributed.init_process_group("gloo")
    for name in ("of_one", "of_two"):
        assert_resumed(json.loads((folder / f"{name}.json").read_text()), (rank,), 2, expected)


@needs_gloo
def test_a_resumed_run_finds_the_dead_units_of_an_uninterrupted_one(tmp_path: Path) -> None:
    expected = dead_shares(train(range(STEPS), (0,), 1))
    assert np.isnan(expected[0])  # 60 samples are not enough
    assert len(set(expected[1:])) > 1  # so that a resumed run can't be right by chance
    (tmp_path / "of_one.json").write_text(json.dumps(states_of((0,), 1)))
    in_processes(partial(write, tmp_path))
    for name in ("of_one", "of_two"):
        assert_resumed(json.loads((tmp_path / f"{name}.json").read_text()), (0,), 1, expected)
    in_processes(partial(resume, tmp_path, expected))


def test_units_of_another_number_are_counted_anew_while_the_last_share_holds() -> None:
    def step(units: int, samples: int) -> dict[str, np.ndarray]:
        return {"samples": np.array([float(samples)]), "units": np.ones(units), "fired": np.arange(units) % 2.0}

    def share(activity: UnitActivity, units: int, samples: int) -> float:
        return float(activity.dead_shares({"relu": 0}, {0: slice(0, units)}, step(units, samples))[0])

    first, second = UnitActivity(), UnitActivity()
    assert share(first, 8, 100) == 0.5
    assert share(first, 8, 60) == 0.5
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert share(second, 9, 60) == 0.5  # not 120 samples
    assert share(second, 9, 60) == 5 / 9
