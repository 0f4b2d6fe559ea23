"""The worked example at the head of gradwatch/probe/sums.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradwatch.probe.probe import Probe
from gradwatch.probe.reduction import SingleProcess
from gradwatch.probe.scalars import DeviceScalars
from gradwatch.probe.sum_layout import Indices, SumLayout, Sums
from gradwatch.records import Array


class Example(nn.Module):
    """Three layers, of which one is called twice and two share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(1, 1, bias=False) for _ in range(3))
        self.c.weight = self.a.weight
        nn.init.constant_(self.a.weight, 2.0)
        nn.init.constant_(self.b.weight, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.b(self.a(x))))


def test_the_worked_example_is_what_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Sums] = []

    def add_up(
        group: SingleProcess, layout: SumLayout, scalars: DeviceScalars, wanted: Indices
    ) -> Callable[[Array], Sums]:
        def sums_of(values: Array) -> Sums:
            rows.append(layout.split(layout.on_host(values)))
            return rows[-1]

        return sums_of

    monkeypatch.setattr(SingleProcess, "add_up", add_up)
    probe = Probe(model := Example())
    probe.attach()
    model(torch.ones(1, 1)).sum().backward()
    assert probe._hooks.log.arrivals == [3, 2, 1, 0]
    assert probe._hooks.log.inputs == [(1, 0), (2, 1), (3, 2)]
    probe.read(model.parameters())
    snapshot = probe.snapshot(0)
    expected = {
        "energy": [324, 40, 1],
        "arrived": [1, 2, 1],
        "entries": [1, 2, 1],
        "in_energy": [0, 360, 4],
        "out_energy": [4, 360, 1296],
        "position": [0, 1, 2],
        "calls": [36, 4],
        "grad": [1296, 576],
        "weight": [4, 9],
    }
    assert {name: rows[0][name].tolist() for name in expected} == expected
    assert snapshot is not None
    assert snapshot.total_norm == pytest.approx((1296 + 576) ** 0.5)
    assert snapshot.gain[1] == pytest.approx(3)
