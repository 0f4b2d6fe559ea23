"""Columns that nobody keeps and no detector needs are not read, and all others are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch import Exploding, Saturated, Snapshot, Vanishing, watch
from gradwatch.probe.readings import COLUMNS_OF
from gradwatch.snapshot import ARRAYS

OPTIONAL = set().union(*COLUMNS_OF.values())


class Seen:
    """A detector that keeps what it is shown."""

    def __init__(self, *needs: str) -> None:
        self.needs, self.snapshots = needs, list[Snapshot]()

    def __call__(self, snapshot: Snapshot) -> Sequence[Any]:
        self.snapshots.append(snapshot)
        return ()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)]
    return nn.Sequential(*layers)


def seen_by(detector: Any, *others: Any, columns: Sequence[str] | None) -> list[Snapshot]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, every_n_steps=1, detectors=[detector, *others], columns=columns, on_error="raise") as watcher:
        for seed in range(3):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            loss = model(torch.randn(128, 16)).square().mean()
            loss.backward()
            watcher.step(optimizer, loss)
    return list(detector.snapshots)


def known(snapshot: Snapshot) -> set[str]:
    return {name for name in ARRAYS if len(found := getattr(snapshot, name)) and not np.isnan(found).all()}


@pytest.mark.parametrize("reading", sorted(COLUMNS_OF))
def test_a_detector_sees_what_it_needs_and_of_the_rest_what_is_always_read(reading: str) -> None:
    everything = seen_by(Seen(*COLUMNS_OF), columns=None)
    some = seen_by(Seen(reading), columns=["grad_norm"])
    for whole, part in zip(everything, some, strict=True):
        left_out = OPTIONAL - COLUMNS_OF[reading] - ({"output_rms"} if reading == "saturation" else set())
        assert known(part) == known(whole) - left_out
        for name in known(part):
            found, expected = getattr(part, name), getattr(whole, name)
            # The norm of an output is the weight of its saturated share, so it comes with that.
            is_read = ~np.isnan(found) if name == "output_rms" else np.ones(len(found), np.bool_)
            assert np.allclose(found[is_read], expected[is_read], rtol=1e-6, equal_nan=True), name
        assert part.total_norm == pytest.approx(whole.total_norm, rel=1e-9)


def test_a_column_that_is_kept_is_read_without_a_detector_that_needs_it() -> None:
    latest = seen_by(Seen(), columns=["dead_fraction", "zero_*"])[-1]
    assert OPTIONAL & known(latest) == {"dead_fraction", "zero_fraction"}


def test_a_detector_without_needs_is_shown_all() -> None:
    snapshots: list[Snapshot] = []

    def detector(snapshot: Snapshot) -> Sequence[Any]:
        snapshots.append(snapshot)
        return ()

    seen_by(Seen(), detector, columns=["grad_norm"])
    assert known(snapshots[-1]) >= {"output_rms", "dead_fraction", "saturated_fraction", "zero_fraction", "update_norm"}


def test_by_default_all_is_read() -> None:
    assert known(seen_by(Seen(), columns=None)[-1]) >= {"output_rms", "zero_fraction", "param_update_norm"}


def test_the_detectors_say_what_they_need() -> None:
    latest = seen_by(Seen(), Vanishing(), Saturated(), columns=["grad_norm"])[-1]
    assert OPTIONAL & known(latest) == {
        "output_rms", "saturated_fraction", "update_norm", "update_to_weight", "param_update_norm"
    }  # fmt: skip
    assert not OPTIONAL & known(seen_by(Seen(), Exploding(), columns=["grad_norm"])[-1])
