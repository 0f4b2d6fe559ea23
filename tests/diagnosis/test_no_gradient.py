"""Causes of gradients that are missing, zero or overflow: each named by what stands behind them."""

from __future__ import annotations

import numpy as np
import pytest

from gradwatch.diagnosis import diagnose
from gradwatch.records import Finding, Snapshot

NAN = float("nan")
PARAMS = ("a.weight", "b.weight")


def stalled(case: str = "") -> Finding:
    return Finding("stalled", PARAMS, 0, 2.0, 0.0, "stalled: it gets no gradient.", case=case)


def nonfinite(case: str, step: int = 0) -> Finding:
    return Finding("nonfinite", ("loss",), step, 0.0, 0.0, f"they begin in `{case}`.", "error", case=case)


def run(grads: list[float], outputs: list[float], weights: list[float], frozen: float = 0.0) -> list[Snapshot]:
    return [
        Snapshot(
            n, ("a", "b"), ("Linear", "Linear"), params=PARAMS, param_grad_norm=grads, grad_output_norm=outputs,
            param_weight_norm=weights, param_size=[4, 4], frozen_size=frozen, trace_step=[n], trace_loss=[2.3],
            input_rms=1.0,
        )
        for n in range(30)
    ]  # fmt: skip


def causes(findings: list[Finding], history: list[Snapshot]) -> list[str]:
    return [found.cause for found in diagnose(findings, history)]


def test_gradients_that_are_cleared_between_backward_and_step() -> None:
    first, second = diagnose([stalled("no gradient")], run([NAN, NAN], [1.0, 1.0], [1.0, 1.0]))
    assert (first.cause, second.cause) == ("frozen or detached part", "step without effect")
    assert second.remedies[0] == "call zero_grad() before backward(), not between backward() and step()"
    detached = run([NAN, NAN], [NAN, NAN], [1.0, 1.0])
    assert causes([stalled("no gradient")], detached) == ["frozen or detached part"]


def test_zeros_are_no_fault_of_a_head_that_passes_gradients() -> None:
    both = run([0.0, 0.0], [1.0, 1.0], [0.0, 0.0])
    assert causes([stalled()], both) == ["initialization too small"]
    one_is_frozen = run([0.0, 0.0], [1.0, 1.0], [1.0, 1.0], frozen=8.0)
    assert causes([stalled()], one_is_frozen) == ["frozen or detached part"]
    assert causes([stalled()], run([0.0, 0.0], [0.0, 0.0], [1.0, 1.0])) == ["zero-gradient head"]


def test_a_place_that_cuts_the_gradient_is_told_from_one_that_fades() -> None:
    assert causes([stalled()], run([0.0, 1.0], [0.0, 1.0], [1.0, 1.0])) == ["frozen or detached part"]
    fades = Snapshot(0, ("a",), params=("a", "b", "c"), param_grad_norm=[0.0, 1e-30, 1.0], param_size=[4, 4, 4])
    assert causes([stalled()], [fades]) == ["not known"]


@pytest.mark.parametrize("operation", ["matmul", "pow(2)", "sum"])
def test_an_overflow_before_any_step_is_the_weights_and_needs_no_guard(operation: str) -> None:
    assert causes([nonfinite(operation)], run([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])) == ["initialization too large"]
    assert causes([nonfinite("log")], run([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])) == ["unguarded operation"]


def test_a_loss_that_fell_without_end_is_unbounded_though_it_jumps_up_as_numbers_overflow() -> None:
    losses = [-3.0, -4.0, *np.linspace(-10, -900, 26), 4e4, np.inf]
    history = [Snapshot(n, (), trace_step=[n], trace_loss=[loss]) for n, loss in enumerate(losses)]
    assert causes([nonfinite("pow(2)", 29)], history) == ["unbounded loss"]
