"""A cause, its evidence and remedies for every kind of finding."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch import Diagnosis, Finding, Snapshot, watch
from gradwatch.diagnosis import diagnose
from gradwatch.records import Kind

LAYERS = ("a", "b", "c")


def finding(kind: str, layers: tuple[str, ...] = ("a",), step: int = 0, value: float = 0.6) -> Finding:
    return Finding(kind, layers, step, value, 0.5, f"{kind} it is")


def cause(kind: str, *history: Snapshot, **about: object) -> Diagnosis:
    return diagnose([finding(kind, **about)], history)[0]


def gains(**by_kind: float) -> Snapshot:
    return Snapshot(0, tuple(by_kind), kinds=tuple(by_kind), gain=list(by_kind.values()), loss=2.5, total_norm=4e7)


@pytest.mark.parametrize("kind", [*get_args(Kind), "my own"])
@pytest.mark.parametrize("history", [[], [Snapshot(0, ())], [Snapshot(3, LAYERS, kinds=("ReLU",) * 3, gain=[1] * 3)]])
def test_every_kind_gets_a_cause_evidence_and_remedies(kind: str, history: list[Snapshot]) -> None:
    about = finding(kind)
    (diagnosis,) = diagnose([about], history)
    assert diagnosis.finding is about
    assert diagnosis.cause
    assert diagnosis.evidence.endswith((".", "it is"))
    assert diagnosis.remedies
    assert all(diagnosis.remedies)
    assert str(diagnosis).startswith(f"{kind}: {diagnosis.cause}. ")


def test_one_diagnosis_for_each_finding_in_order() -> None:
    findings = [finding("dead"), finding("spike", ("loss",)), finding("dead", ("c",))]
    assert [diagnosis.finding for diagnosis in diagnose(findings, [Snapshot(0, LAYERS)])] == findings


def test_the_snapshot_nearest_to_the_finding_is_the_evidence() -> None:
    history = [Snapshot(step, ("a",), kinds=("Sigmoid",), gain=[gain]) for step, gain in ((0, 0.25), (50, 0.5))]
    assert "by 0.25" in cause("vanishing", *history, step=20).evidence
    assert "by 0.5" in cause("vanishing", *history, step=40).evidence


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (gains(Sigmoid=0.2, Linear=0.6), "saturating activation"),
        (gains(Tanh=0.98, Linear=0.1), "weights too small for the depth"),
        (gains(ReLU=0.7, Linear=0.6), "weights too small for the depth"),
        (Snapshot(0, ("a",), calls={"a": np.geomspace(1e-9, 1, 5)}), "recurrent depth"),
    ],
)
def test_why_it_vanishes(snapshot: Snapshot, expected: str) -> None:
    assert cause("vanishing", snapshot).cause == expected


@pytest.mark.parametrize(
    ("snapshot", "expected", "evidence"),
    [
        (gains(ReLU=0.7, Linear=8.0), "weights too large for the depth", "Linear by 8"),
        (gains(ReLU=0.7, Linear=1.1), "unscaled input or target, or a learning rate too high", "loss is 2.5"),
        (Snapshot(0, ("a",), calls={"a": np.array([3e9, 1.0])}), "recurrent depth", "from 1.0e+00 to 3.0e+09"),
    ],
)
def test_why_it_explodes(snapshot: Snapshot, expected: str, evidence: str) -> None:
    diagnosis = cause("exploding", snapshot)
    assert diagnosis.cause == expected
    assert evidence in diagnosis.evidence


def test_why_it_is_not_finite() -> None:
    rising = [Snapshot(step, (), total_norm=norm) for step, norm in enumerate([1.0, 1.0, 1.0, 90.0, math.inf])]
    level = [Snapshot(step, (), total_norm=norm) for step, norm in enumerate([1.0, 1.0, 1.1, 1.2, math.inf])]
    assert cause("nonfinite", *rising, step=4).cause == "learning rate too high"
    assert cause("nonfinite", *level, step=4).cause == "bad batch or an operation without a guard"
    assert cause("nonfinite", level[-1], step=4).evidence == "It was there from the start."


@pytest.mark.parametrize("kind", ["dead", "saturated"])
def test_units_that_never_reacted_and_units_that_stopped(kind: str) -> None:
    history = [Snapshot(step, LAYERS) for step in (0, 400)]
    early, late = cause(kind, *history, step=3), cause(kind, *history, step=400)
    assert early.cause != late.cause == "learning rate too high"
    assert "60%" in early.evidence


def test_a_gradient_that_is_none_and_one_that_is_zero() -> None:
    snapshot = Snapshot(0, (), params=("a", "b"), param_grad_norm=np.array([math.nan, 0.0]))
    assert cause("stalled", snapshot).cause == "detached or unused part"
    assert "The .grad of a is None" in cause("stalled", snapshot).evidence
    assert cause("stalled", snapshot, layers=("b",)).cause == "a head or activation that passes no gradient"


def test_a_spike_names_what_jumped() -> None:
    assert "loss reached 9; the limit was 0.5" in cause("spike", Snapshot(0, ()), layers=("loss",), value=9.0).evidence


def test_the_cause_of_a_real_network() -> None:
    torch.manual_seed(0)
    blocks = [module for _ in range(7) for module in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(*blocks, nn.Linear(32, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, on_finding=lambda found: None) as watcher:
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(64, 32)), torch.randint(0, 5, (64,))).backward()
            watcher.step(optimizer)
    (diagnosis,) = watcher.diagnosis()
    assert diagnosis.cause == "saturating activation"
    assert "7 Sigmoids" in diagnosis.evidence
    assert "by 0.2" in diagnosis.evidence
    assert diagnosis.remedies[0] == "ReLU with He initialization"
