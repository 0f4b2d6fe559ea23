"""Weights that do not move though they have a gradient, and trainings in which nothing can move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch import CutOff, Finding, Snapshot, Unmoved, watch

NAN = float("nan")
NAMES = ("body.weight", "head.weight")
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def step(number: int, updates: Any = (0.0, 1e-3), rate: float = 0.1, **more: Any) -> Snapshot:
    """A step of SGD on two parameters of 100 entries, the second of which moves."""
    given = {
        "param_grad_norm": [1.0, 1.0], "param_weight_norm": [1.0, 1.0 + 1e-3 * number], "param_size": [100, 100],
        "param_groups": ("SGD 0", "SGD 1"), "groups": ("SGD 0", "SGD 1"), "group_learning_rate": [rate, 0.1],
        "total_norm": 1.4, "total_norm_after": 1.4, "trace_step": [number], "trace_loss": [1.0],
        "trace_total_norm": [NAN],
    }  # fmt: skip
    return Snapshot(number, (), params=NAMES, param_update_norm=updates, **{**given, **more})


def last(snapshots: list[Snapshot], **options: Any) -> list[Finding]:
    unmoved, found = Unmoved(**options), []
    for snapshot in snapshots:
        found = list(unmoved(snapshot))
    return found


CASES: dict[str, Callable[[int], Snapshot]] = {
    "rate zero": lambda n: step(n, rate=0.0),
    "no effect": lambda n: step(n),
    "rounded away": lambda n: step(n, rate=1e-9),
    "put back": lambda n: step(n, [1e-2, 1e-3], param_put_back=[1.0, NAN]),
    "skipped": lambda n: step(n, [0.0, 0.0], skipped=True, param_weight_norm=[1.0, 1.0], param_grad_norm=[np.inf] * 2),
}


@pytest.mark.parametrize("case", CASES)
def test_each_reason_is_told(case: str) -> None:
    snapshots = [CASES[case](n) for n in range(20)]
    finding = last(snapshots)[0]
    assert (finding.case, finding.step, finding.kind) == (case, 0, "unmoved")
    assert finding.layers == (NAMES if case == "skipped" else NAMES[:1])
    assert last(snapshots[:9]) == []


def test_a_part_in_no_optimizer_waits_longer_as_its_turn_may_come() -> None:
    snapshots = [step(n, [1e-2, 1e-3], left_out=("lost.weight",)) for n in range(20)]
    assert last(snapshots[:19]) == []
    (finding,) = last(snapshots)
    assert (finding.layers, finding.case) == (("lost.weight",), "no optimizer")


HEALTHY: dict[str, Callable[[int], Snapshot]] = {
    "with one far below Adam's epsilon": lambda n: step(
        n, param_grad_norm=[1e-20, 1.0], param_groups=("Adam 0", "Adam 1"), groups=("Adam 0", "Adam 1")
    ),
    "without a gradient": lambda n: step(n, param_grad_norm=[0.0, 1.0]),
    "with a gradient of None": lambda n: step(n, param_grad_norm=[NAN, 1.0]),
    "a gradient too small to show": lambda n: step(n, param_grad_norm=[1e-9, 1.0]),
    "a rate that rises": lambda n: step(n, rate=1e-12 * (n + 1)),
    "a schedule that ends at zero": lambda n: step(n, [1e-2 * (n < 5), 1e-3], rate=0.1 * (n < 5),
                                                   param_weight_norm=[1.0 + 0.01 * min(n, 5), 1.0]),
    "transforms that take the gradient away": lambda n: step(n, total_norm_after=0.0),
    "an update that is not known": lambda n: step(n, [NAN, 1e-3]),
    "a few skipped steps": lambda n: step(n, [0.0, 0.0] if n < 12 else [1e-2, 1e-3], skipped=n < 12),
    "a constraint that keeps the norm": lambda n: step(n, [1e-2, 1e-3], param_put_back=[0.0, NAN]),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_what_rests_for_a_reason_is_no_finding(name: str) -> None:
    assert last([HEALTHY[name](n) for n in range(30)]) == []


def test_an_optimizer_that_steps_every_second_time_is_followed_over_the_gaps() -> None:
    other = {"param_grad_norm": [1.0], "param_weight_norm": [1.0], "param_update_norm": [1e-2]}
    snapshots = [step(n) if n % 2 else Snapshot(n, (), params=("other",), **other) for n in range(20)]
    assert last(snapshots)[0].case == "no effect"


def half(losses: Callable[[int], float], changed: float) -> list[Snapshot]:
    half_of = {"param_dtypes": ("bfloat16", "float32"), "param_changed": [changed, NAN], "rate": 1e-4}
    return [step(n, [1e-4 * (changed > 0), 1e-3], trace_loss=[losses(n)], **half_of) for n in range(30)]


def test_lost_updates_of_half_precision_are_told_with_what_is_missing_unless_the_run_learns() -> None:
    (finding,) = last(half(lambda n: 1.0, changed=0.2))
    assert finding.case == "rounded away"
    assert "20.0% of the entries change" in finding.message
    assert "bfloat16 loses changes under 3.9e-03 of a weight" in finding.message
    assert "39 times too little" in finding.message
    assert last(half(lambda n: 0.9**n, changed=0.2)) == []
    assert last(half(lambda n: 1.0, changed=0.8)) == []
    noisy = last(half(lambda n: 1.0 + (n % 3), changed=0.0))  # none changes: no noise of the loss excuses it
    assert noisy[0].case == "rounded away"


def test_a_resumed_run_goes_on_counting() -> None:
    unmoved, resumed = Unmoved(), Unmoved()
    for number in range(6):
        list(unmoved(step(number)))
    resumed.load_state_dict(unmoved.state_dict())
    found = [list(resumed(step(number))) for number in range(6, 10)]
    assert [len(each) for each in found] == [0, 0, 0, 1]
    assert found[-1][0].step == 0


def test_a_loop_in_which_nothing_gets_a_gradient_is_found_at_once() -> None:
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, on_finding=lambda finding: None) as watcher:
        for _ in range(4):
            watcher.step(optimizer, torch.tensor(1.0))
    (finding,) = watcher.findings
    assert (finding.kind, finding.case, finding.layers) == ("stalled", "no gradient", ("weight", "bias"))
    assert watcher.diagnosis()[0].cause == "frozen or detached part"


def test_an_optimizer_of_another_model_is_found_at_once() -> None:
    model, other = nn.Linear(8, 1), nn.Linear(8, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with watch(model, on_finding=lambda finding: None) as watcher:
        for _ in range(4):
            model(X).square().mean().backward()
            watcher.step(optimizer)
            model.zero_grad()
    (finding,) = watcher.findings
    assert (finding.kind, finding.case, finding.layers) == ("stalled", "no optimizer", ("weight", "bias"))


def test_an_optimizer_that_needs_no_gradient_is_no_finding() -> None:
    """Optimizers of zeroth order compare losses and leave ``.grad`` alone."""

    class Perturbing(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            for group in self.param_groups:
                for param in group["params"]:
                    param.data.add_(1e-3 * torch.randn_like(param))

    model = nn.Linear(8, 1)
    with watch(model, on_finding="raise") as watcher:
        for _ in range(30):
            watcher.step(Perturbing(model.parameters(), lr=0.1), torch.tensor(1.0))
    assert watcher.findings == []


def test_a_batch_without_a_step_is_left_out() -> None:
    assert list(CutOff()(Snapshot(0, ()))) == []
    assert list(CutOff()(step(0))) == []
