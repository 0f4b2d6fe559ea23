"""Rates that are too low: by the update over the weights, of each parameter group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwatch.diagnosis import diagnose
from gradwatch.records import Diagnosis, Finding, Snapshot

PARAMS = ("body.weight", "head.weight")


def step(number: int, updates: tuple[float, float], rates: tuple[float, float], **more: Any) -> Snapshot:
    given: dict[str, Any] = {
        "param_grad_norm": [1.0, 1.0], "param_weight_norm": [1.0, 1.0], "param_size": [100, 100],
        "param_groups": ("Adam 0", "Adam 1"), "groups": ("Adam 0", "Adam 1"), "trace_step": [number],
        "trace_loss": [1.0], "trace_total_norm": [np.nan],
    }  # fmt: skip
    given |= {"param_update_norm": updates, "group_learning_rate": rates}
    return Snapshot(number, (), params=PARAMS, **{**given, **more})


def too_low(history: list[Snapshot], findings: tuple[Finding, ...] = ()) -> list[Diagnosis]:
    return [found for found in diagnose(findings, history) if found.cause == "learning rate too low"]


def test_updates_that_nobody_can_live_on_while_the_loss_stays() -> None:
    (found,) = too_low([step(n, (1e-8, 1e-8), (1e-9, 1e-9)) for n in range(20)])
    assert "updates at a learning rate of 1e-09 are at most 1.0e-08x" in found.evidence
    assert found.remedies == ("raise the learning rate",)
    learns = [step(n, (1e-8, 1e-8), (1e-9, 1e-9), trace_loss=[0.8**n]) for n in range(20)]
    converged = [step(n, (1e-8, 1e-8), (1e-3, 1e-3), param_grad_norm=[1e-6, 1e-6]) for n in range(20)]
    assert too_low(learns) == too_low(converged) == []


def test_one_group_that_is_far_slower_than_another_whatever_the_loss_does() -> None:
    (found,) = too_low([step(n, (1e-8, 1e-2), (1e-9, 1e-3), trace_loss=[0.8**n]) for n in range(20)])
    assert "parameter group Adam 0 (body.weight) are at most 1.0e-08x its weights" in found.evidence
    assert found.remedies[0] == "give that parameter group a rate near that of the others"
    assert too_low([step(n, (1e-5, 1e-2), (1e-6, 1e-3)) for n in range(20)]) == []


def by_epochs(length: int, interval: str = "epoch") -> list[Snapshot]:
    """A warm-up of 4,000 steps to 1e-3 that advances once an epoch."""
    rates = [n // length * 2.5e-7 for n in range(30)]
    return [
        step(n, (10 * rate, 10 * rate), (rate, rate), group_initial_rate=[1e-3, 1e-3], schedule_interval=interval)
        for n, rate in enumerate(rates)
    ]


@pytest.mark.parametrize("length", [6, 40])
def test_a_warm_up_in_steps_that_advances_by_epoch_is_named(length: int) -> None:
    (found,) = too_low(by_epochs(length))
    assert "of 0.001. The schedule advances once an epoch, Lightning's default" in found.evidence
    assert "interval" in found.remedies[0]


def test_a_warm_up_by_step_is_left_to_rise() -> None:
    assert too_low(by_epochs(1, "step")) == []


def test_an_epsilon_that_outweighs_the_gradient() -> None:
    (found,) = too_low([step(n, (3e-4, 1e-3), (1e-2, 1e-2)) for n in range(20)])
    assert "no parameter of parameter group Adam 0 (body.weight) moves by more than 3.0e-03x the rate" in found.evidence
    assert found.remedies[0] == "use the optimizer's own eps: 1e-8 in Adam"
    assert too_low([step(n, (0.1, 0.05), (1e-2, 1e-2)) for n in range(20)]) == []


def test_weights_in_half_precision_are_not_the_rate_s_fault() -> None:
    lost = Finding("unmoved", PARAMS[:1], 0, 0.0, 3.9e-3, "unmoved: they are lost.", case="rounded away")
    history = [step(n, (0.0, 1e-2), (1e-5, 1e-3), param_dtypes=("bfloat16", "float32")) for n in range(20)]
    first = diagnose([lost], history)[0]
    assert (first.cause, first.findings) == ("precision underflow", (lost,))
    assert first.remedies[0].startswith("keep the weights in float32")


def decayed(end: int, factor: float = 0.0) -> list[Snapshot]:
    """A rate that falls in a line to a share of its start."""
    rates = [1e-3 * max(1 - n / end, factor) for n in range(60)]
    return [step(n, (rate, rate), (rate, rate), trace_loss=[1 - n / 1000]) for n, rate in enumerate(rates)]


def test_a_schedule_that_ends_before_half_of_a_run_that_has_not_learned() -> None:
    (found,) = too_low(decayed(10))
    assert found.evidence.startswith("From step 10 on, of 60, the schedule gives parameter group Adam 0 (body.weight)")
    assert found.remedies[0] == "let the schedule last as long as the training, or advance once an epoch"
    learns = [step(n, (0.1, 0.1), (0.0, 0.0) if n > 9 else (1e-3, 1e-3), trace_loss=[0.8**n]) for n in range(60)]
    assert too_low(decayed(60)) == too_low(decayed(10, 0.1)) == too_low(learns) == []


def test_a_warm_up_that_is_over_hides_no_rate_that_is_too_low() -> None:
    rates = [1e-9 * min(n + 1, 10) for n in (*range(20), 50, 100)]
    history = [
        step(n, (30 * rate, 30 * rate), (rate, rate)) for n, rate in zip((*range(20), 50, 100), rates, strict=True)
    ]
    (found,) = too_low(history)
    assert "at most 3.0e-07x" in found.evidence
    assert too_low(history[:10]) == []
