"""NaN, Inf and jumps: the layers and the step of each finding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import X, Y, classify, he, mlp, train
from torch import Tensor, nn

from gradwatch import NonFinite, Snapshot, Spike, Watcher, watch
from gradwatch.pipeline.ledger import Ledger

NAN, INF = float("nan"), math.inf


class Root(nn.Linear):
    """A Linear and the square root of 0: its gradient is infinite, and NaN where nothing depends on it."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h + 0 * (0 * h).sqrt()


class Log(nn.Linear):
    """A Linear and a logarithm without a guard, which is NaN for negative inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


def test_names_the_first_bad_layer_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), Log(16, 16), nn.Linear(16, 5))
    finding = train(model, steps=1).findings[0]
    assert finding.kind == "nonfinite"
    assert finding.severity == "error"
    assert finding.step == 0
    assert finding.layers[:2] == ("loss", "2")
    assert "forward pass in the output of layer 2" in finding.message


def test_names_the_first_bad_layer_of_the_backward_pass_where_the_loss_is_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), Root(16, 16), nn.Linear(16, 5))
    watcher = train(model, steps=1)
    assert np.isfinite(watcher.history[0].loss)
    finding = watcher.findings[0]
    assert (finding.layers, finding.value) == (("2",), 32 * 16 + 16 + 16 * 16 + 16)
    assert "backward pass at layer 2" in finding.message


def passing(
    steps: int, losses: dict[int, float] | None = None, grads: dict[int, float] | None = None, **options: object
) -> Watcher:
    """A loop without learning: the loss is 1 and the gradient ordinary, except in the given steps."""
    options.setdefault("detectors", [NonFinite(), Spike()])
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, on_finding=lambda finding: None, **options) as watcher:
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            if step in (grads or {}):
                model.weight.grad.fill_(grads[step])
            watcher.read(optimizer)
            optimizer.zero_grad()
            watcher.step(optimizer, torch.tensor((losses or {}).get(step, 1.0)))
    return watcher


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_bad_loss_between_two_measured_steps_is_dated_exactly(value: float) -> None:
    watcher = passing(60, losses={33: value})
    assert [(f.kind, f.layers, f.step) for f in watcher.findings] == [("nonfinite", ("loss",), 33)]
    assert "at step 33, seen at step 50: in the loss" in watcher.findings[0].message


def test_a_bad_total_norm_between_two_measured_steps_is_dated_exactly() -> None:
    watcher = passing(60, grads={33: NAN}, total_norm_every_step=True)
    assert [(f.kind, f.layers, f.step) for f in watcher.findings] == [("nonfinite", ("grad_norm_total",), 33)]
    assert "in the loss" not in watcher.findings[0].message
    assert passing(60, grads={33: NAN}).findings == []  # no input was measured


def overflow(step: int, *, skipped: bool = True, loss: float = 1.0) -> Snapshot:
    return Snapshot(
        step, ("a",), grad_norm=[INF], nonfinite=[4], skipped=skipped,
        trace_step=np.array([step]), trace_loss=np.array([loss]), trace_total_norm=np.array([INF]),
    )  # fmt: skip


def test_the_steps_that_a_loss_scaler_skips_are_its_search() -> None:
    detector = NonFinite(max_skips=3)
    assert [list(detector(overflow(step))) for step in range(3)] == [[]] * 3
    assert len(list(detector(overflow(3)))) == 1
    assert list(detector(Snapshot(4, ("a",), grad_norm=[1.0]))) == []
    assert list(detector(overflow(5))) == []
    assert len(list(detector(overflow(6, loss=INF)))) == 1  # no scale mends a loss
    assert len(list(detector(overflow(7, skipped=False)))) == 1


@pytest.mark.parametrize("step", [5, 33], ids=["measured", "unmeasured"])
def test_a_skipped_step_is_no_finding(step: int) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, total_norm_every_step=True, detectors=[NonFinite(), Spike()]) as watcher:
        for now in range(60):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            if now == step:
                model.weight.grad.fill_(INF)
            watcher.read(optimizer)
            watcher.end(torch.ones(()), skipped=now == step)
            watcher.begin()
    assert watcher.findings == []


def test_a_spike_between_two_measured_steps_is_dated_exactly() -> None:
    watcher = passing(210, losses={133: 9.0})
    assert [(f.kind, f.layers, f.step) for f in watcher.findings] == [("spike", ("loss",), 133)]
    assert watcher.findings[0].value == pytest.approx(9.0)
    assert watcher.findings[0].threshold == pytest.approx(7.5)


def test_the_total_norm_spikes_too() -> None:
    watcher = passing(210, grads={133: 99.0}, total_norm_every_step=True)
    assert [(f.kind, f.layers, f.step) for f in watcher.findings] == [("spike", ("grad_norm_total",), 133)]


def test_a_gradient_that_jumps_while_the_loss_is_calm_counts_only_if_it_jumps_far() -> None:
    assert passing(210, grads={133: 20.0}, total_norm_every_step=True).findings == []


def spikes(losses: list[float], detector: Spike | None = None) -> list[int]:
    count = len(losses)
    snapshot = Snapshot(
        count - 1, (), trace_step=np.arange(count), trace_loss=np.array(losses), trace_total_norm=np.full(count, NAN)
    )
    return [finding.step for finding in (detector or Spike())(snapshot)]


noise = np.random.default_rng(0)


@pytest.mark.parametrize(
    "losses",
    [
        -10 - noise.random(300),
        noise.normal(size=300),
        1e-6 * 2 ** noise.normal(size=300),
        [*np.geomspace(2.3, 1e-4, 200), *(1e-4 * 30 ** noise.random(100))],
        np.geomspace(1, 1e4, 300),
        [1.0] * 40 + [99.0],
        [0.0] * 300 + [1.0],
        [1.0, NAN, INF] * 100,
        3 * np.sin(np.arange(300)) + 0.5,
    ],
    ids=[
        "negative",
        "around zero",
        "tiny",
        "converged",
        "slow growth",
        "too early",
        "zero",
        "non-finite",
        "both signs",
    ],
)
def test_what_is_no_spike(losses: list[float]) -> None:
    assert spikes(list(losses)) == []


def test_a_non_finite_value_does_not_blind_it() -> None:
    assert spikes([1.0] * 50 + [NAN, INF, -INF] * 5 + [1.0] * 5 + [20.0]) == [70]


def test_a_spike_that_builds_up_stays_out_of_its_own_baseline() -> None:
    assert spikes([1.0] * 100 + list(np.geomspace(1, 20, 20))) == [119]


@given(losses=st.lists(st.floats(0.5, 3.0), min_size=45, max_size=120), factor=st.sampled_from([1e-12, 0.3, 1e12]))
def test_jitter_is_no_spike_and_the_unit_of_the_loss_does_not_matter(losses: list[float], factor: float) -> None:
    assert spikes(losses) == []
    jump = [*losses, 400.0]  # a lone one of less is a tail, where the losses are restless
    assert spikes(jump) == spikes([factor * loss for loss in jump]) == [len(losses)]


def test_a_start_beyond_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="Spike: start is 20; expected at most the window, 10"):
        Spike(window=10)


def test_a_healthy_training_has_neither() -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        return nn.functional.cross_entropy(model(X[step % 4 :: 4]), Y[step % 4 :: 4])

    watcher = train(mlp([32, 64, 5], nn.ReLU), loss, steps=120, lr=0.1, detectors=[NonFinite(), Spike()])
    assert watcher.findings == []


def test_a_resumed_run_knows_the_history_of_the_first() -> None:
    def steps(first: int, losses: list[float]) -> Snapshot:
        count = len(losses)
        return Snapshot(
            first + count - 1, (), trace_step=np.arange(first, first + count), trace_loss=losses,
            trace_total_norm=[np.nan] * count, total_norm=1.0,
        )  # fmt: skip

    ledger = Ledger([Spike(delay=5, start=10)])
    ledger.update(steps(0, [1.0] * 50))
    resumed = Ledger([Spike(delay=5, start=10)])
    resumed.load_state_dict(ledger.state_dict())
    assert [finding.step for finding in resumed.update(steps(50, [9.0]))] == [50]
    assert not Ledger([Spike(delay=5, start=10)]).update(steps(50, [9.0]))


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "nonfinite"), (1e3, "spike")])
def test_a_bad_loss_after_the_last_measured_step_is_found_at_the_end(value: float, kind: str) -> None:
    model = mlp([32, 5], nn.ReLU, he)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watch(model, every_n_steps=100, on_finding=lambda finding: None) as watcher:
        for step in range(190):
            optimizer.zero_grad()
            loss = classify(model, step)
            loss.backward()
            watcher.step(optimizer, torch.tensor(value) if step == 180 else loss)
        assert watcher.findings == []
    assert [(finding.kind, finding.step, finding.layers) for finding in watcher.findings] == [(kind, 180, ("loss",))]
    watcher.close()
    assert len(watcher.findings) == 1


def test_a_gradient_that_grows_while_the_loss_falls_is_no_spike() -> None:
    def step(number: int, loss: float, norm: float) -> Snapshot:
        steps = {"trace_step": [number], "trace_loss": [loss], "trace_total_norm": [math.nan]}
        return Snapshot(number, (), loss=loss, total_norm=norm, **steps)

    for loss, found in ((0.5, []), (2.0, ["spike"])):
        spike = Spike()
        for number in range(80):
            assert list(spike(step(number, 1.0, 1.0))) == []
        assert [finding.kind for finding in spike(step(80, loss, 20.0))] == found
